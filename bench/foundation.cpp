#include "foundation.h"

#include <torch/csrc/autograd/grad_mode.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <future>

#include "base/file.h"
#include "base/parallel.h"
#include "base/progress.h"
#include "engine/engine.h"
#include "kernels/matmul.h"
#include "model/checkpoint.h"
#include "model/loss.h"
#include "pretrain/optimizer.h"
#include "text/tokenizer.h"

namespace fathom::bench {
namespace {

using torch::Tensor;

double median_seconds(const std::function<void()>& run) {
  run();
  std::vector<double> seconds;
  for (int i = 0; i < 3; ++i) {
    const base::Stopwatch watch;
    run();
    seconds.push_back(watch.seconds());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[1];
}

int64_t resident_bytes() {
  long pages = 0, resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file && std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
  if (file) std::fclose(file);
  return resident * ::sysconf(_SC_PAGESIZE);
}

Tensor random_tokens(int64_t count, int64_t vocab_size) {
  torch::manual_seed(1);
  return torch::randint(vocab_size, {count}, torch::kLong);
}

double forward_seconds(const model::Model& model, int64_t count, model::AttentionForm form) {
  const torch::NoGradGuard no_grad;
  const Tensor tokens = random_tokens(count, model.config.vocab_size);
  return median_seconds([&] {
    model::KvCache cache(model.config);
    const model::Segment segment{count, 0, &cache};
    const Tensor hidden = model::forward(model, tokens, {&segment, 1}, {.form = form});
    model::logits(model, hidden, {});
  });
}

double decode_tokens_per_second(const std::shared_ptr<const model::Model>& model, int64_t count) {
  engine::Engine engine(model);
  const double seconds = median_seconds([&] {
    std::promise<void> done;
    engine::Request request;
    request.prompt.assign(32, 5);
    request.max_tokens = static_cast<int>(count);
    engine.submit(request, [&](const engine::RequestEvent& event) {
      if (event.is_finished) done.set_value();
    });
    done.get_future().wait();
  });
  return static_cast<double>(count) / seconds;
}

// One step of the dense stage with Muon, rows of 1,024 tokens.
double training_tokens_per_second(const model::Config& config, int64_t count) {
  model::Model model = model::initialise(config, 1);
  pretrain::Optimizer optimizer(model::tensor_slots(model.weights, model.config), {});
  const model::TrainingBatch batch{
      random_tokens(count, config.vocab_size), random_tokens(count, config.vocab_size).roll(1),
      std::vector<int64_t>(std::max<int64_t>(count / 1024, 1), std::min<int64_t>(count, 1024))};
  int64_t step = 0;
  const double seconds = median_seconds([&] {
    model::language_model_loss(model, batch, {}).total.backward();
    const torch::NoGradGuard no_grad;
    optimizer.step(1e-4, ++step);
  });
  return static_cast<double>(count) / seconds;
}

double linear_gflops() {
  const int64_t m = 4096, n = 192, k = 192;
  std::vector<float> x(m * k, 0.5f), w(n * k, 0.25f), y(m * n);
  const double seconds = median_seconds([&] {
    kernels::linear({x.data(), m, k}, {kernels::WeightFormat::kF32, w.data(), n, k, nullptr, 0},
                    {y.data(), m, n});
  });
  return 2e-9 * static_cast<double>(m * n * k) / seconds;
}

// The tokenizer's own vocabulary, repeated as words, is text of the kind that it was trained on.
double tokenizer_megabytes_per_second(const text::Tokenizer& tokenizer) {
  std::string text;
  for (int id = 300; text.size() < (20 << 20); id = id + 7 < tokenizer.vocab_size() ? id + 7 : 300)
    if (!tokenizer.is_special(id)) text += tokenizer.token_bytes(id) + " ";
  const double seconds = median_seconds([&] { tokenizer.encode(text); });
  return static_cast<double>(text.size()) / 1e6 / seconds;
}

}  // namespace

Json measure_foundation(const FoundationOptions& options) {
  if (options.num_threads > 0) base::set_num_threads(options.num_threads);
  Json result = {{"model", options.model.filename().string()}, {"threads", base::num_threads()}};
  const int64_t before = resident_bytes();
  const base::Stopwatch watch;
  const auto model = std::make_shared<const model::Model>(model::load_checkpoint(options.model));
  const auto tokenizer = text::Tokenizer::load(options.model / "tokenizer.json");
  result["load_s"] = watch.seconds();
  const int64_t context = model->config.max_position_embeddings;
  const int64_t forward_tokens = std::min(options.forward_tokens, context);
  result["forward_tokens"] = forward_tokens;
  result["forward_mha_s"] = forward_seconds(*model, forward_tokens, model::AttentionForm::kMha);
  result["forward_mqa_s"] = forward_seconds(*model, forward_tokens, model::AttentionForm::kMqa);
  result["decode_tokens_per_s"] = decode_tokens_per_second(model, options.decode_tokens);
  result["resident_growth_bytes"] = resident_bytes() - before;
  result["weights_bytes"] =
      static_cast<int64_t>(std::filesystem::file_size(options.model / "model.safetensors"));
  result["tokenizer_mb_per_s"] = tokenizer_megabytes_per_second(tokenizer);
  result["linear_gflop_per_s"] = linear_gflops();
  result["training_tokens_per_s"] =
      training_tokens_per_second(model->config, options.training_tokens);
  return result;
}

}  // namespace fathom::bench
