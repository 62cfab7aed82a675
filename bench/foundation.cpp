#include "bench/foundation.h"

#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <functional>
#include <future>
#include <utility>

#include "base/file.h"
#include "base/parallel.h"
#include "base/progress.h"
#include "bench/machine.h"
#include "bench/timing.h"
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
  return median(std::move(seconds));
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
    model::ForwardOptions options = model::serving_options(model);
    options.form = form;
    model::logits(model, model::forward(model, tokens, {&segment, 1}, options), options);
  });
}

double decode_tokens_per_second(const std::shared_ptr<const model::Model>& model, int64_t count,
                                bool speculate) {
  engine::Engine engine(model, {.speculation = speculate ? engine::Speculation::kAlways
                                                         : engine::Speculation::kNone});
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

// Licences that every Debian has: 300 KB of English prose.
std::string english_prose() {
  std::string text;
  for (const char* name : {"GPL-1", "GPL-2", "GPL-3", "LGPL-2.1", "GFDL-1.3", "MPL-2.0"}) {
    const auto file = std::filesystem::path("/usr/share/common-licenses") / name;
    if (std::filesystem::exists(file)) text += base::read_file(file);
  }
  return text;
}

// On the calling thread, in documents as long as the prose is; nothing is kept between documents.
double tokenizer_megabytes_per_second(const text::Tokenizer& tokenizer, const std::string& prose) {
  const int64_t repeats = (10 << 20) / static_cast<int64_t>(prose.size()) + 1;
  const double seconds = median_seconds([&] {
    for (int64_t i = 0; i < repeats; ++i) tokenizer.encode(prose);
  });
  return static_cast<double>(prose.size()) * static_cast<double>(repeats) / 1e6 / seconds;
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
  result["decode_tokens_per_s"] = decode_tokens_per_second(model, options.decode_tokens, false);
  if (model->weights.mtp)
    result["decode_speculating_tokens_per_s"] =
        decode_tokens_per_second(model, options.decode_tokens, true);
  result["resident_growth_bytes"] = resident_bytes() - before;
  result["weights_bytes"] =
      static_cast<int64_t>(std::filesystem::file_size(options.model / "model.safetensors"));
  if (const std::string prose = english_prose(); !prose.empty())
    result["tokenizer_mb_per_s"] = tokenizer_megabytes_per_second(tokenizer, prose);
  const MachinePeaks peaks = measure_machine();
  result["machine_f32_gflop_per_s"] = peaks.f32_gflop_per_s;
  result["machine_read_gbyte_per_s"] = peaks.read_gbyte_per_s;
  result["linear_share_of_peak"] = linear_gflops() / peaks.f32_gflop_per_s;
  result["training_tokens_per_s"] =
      training_tokens_per_second(model->config, options.training_tokens);
  return result;
}

}  // namespace fathom::bench
