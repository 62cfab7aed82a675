#include "bench/streams.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "base/file.h"
#include "base/parallel.h"
#include "base/progress.h"
#include "bench/machine.h"
#include "bench/timing.h"
#include "model/checkpoint.h"
#include "text/tokenizer.h"

namespace fathom::bench {
namespace {

// Counts the tokens of all streams and remembers when all had begun.
class Counter {
 public:
  explicit Counter(int num_streams) : num_waiting_(num_streams), num_running_(num_streams) {}

  void take(const engine::RequestEvent& event, bool is_first) {
    const std::scoped_lock lock(mutex_);
    if (!event.error.empty()) error_ = event.error;
    if (is_first && --num_waiting_ == 0) watch_ = base::Stopwatch();
    if (num_waiting_ == 0 && !is_first) ++num_tokens_;
    if (event.is_finished && --num_running_ == 0) {
      seconds_ = watch_.seconds();
      done_.notify_one();
    }
  }
  double tokens_per_second() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return num_running_ == 0; });
    if (!error_.empty()) fail("generation failed: {}", error_);
    return static_cast<double>(num_tokens_) / seconds_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  base::Stopwatch watch_;
  int num_waiting_, num_running_;
  int64_t num_tokens_ = 0;
  double seconds_ = 0;
  std::string error_;
};

// Empty where prompts are random tokens.
std::vector<int32_t> load_text(const StreamsOptions& options) {
  if (options.text.empty()) return {};
  std::vector<int32_t> text =
      text::Tokenizer::load(options.model / "tokenizer.json").encode(base::read_file(options.text));
  if (std::ssize(text) < options.prompt_tokens)
    fail("{} has {} tokens; a prompt needs {}", options.text.string(), text.size(),
         options.prompt_tokens);
  return text;
}

// A prompt for each stream: parts of the text, or random tokens.
std::vector<std::vector<int32_t>> prompts(const StreamsOptions& options,
                                          const std::vector<int32_t>& text, int64_t vocab_size,
                                          int num_streams, int seed) {
  const int64_t num_begins = std::ssize(text) - options.prompt_tokens + 1;
  std::vector<std::vector<int32_t>> result(num_streams);
  for (int i = 0; i < num_streams; ++i) {
    base::Random random(seed, i);
    const int64_t begin = text.empty() ? 0 : static_cast<int64_t>(random.below(num_begins));
    for (int64_t t = 0; t < options.prompt_tokens; ++t)
      result[i].push_back(text.empty() ? static_cast<int32_t>(random.below(vocab_size))
                                       : text[begin + t]);
  }
  return result;
}

double run(engine::Engine& engine, const StreamsOptions& options,
           const std::vector<std::vector<int32_t>>& prompts) {
  Counter counter(static_cast<int>(prompts.size()));
  for (size_t i = 0; i < prompts.size(); ++i) {
    engine::Request request;
    request.prompt = prompts[i];
    request.max_tokens = static_cast<int>(options.tokens);
    request.sampling.temperature = options.temperature;
    request.sampling.seed = i;
    engine.submit(std::move(request), [&, is_first = true](const auto& event) mutable {
      counter.take(event, is_first);
      is_first = false;
    });
  }
  return counter.tokens_per_second();
}

// The model in as many engines as are compared: drafting, or not; and what they are asked.
struct Engines {
  std::shared_ptr<const model::Model> model;
  std::vector<int32_t> text;
  std::unique_ptr<engine::Engine> plain = nullptr, speculating = nullptr;
};

Engines start_engines(const StreamsOptions& options) {
  model::Model loaded = model::load_checkpoint(options.model);
  // Positions beyond the trained ones cost the same.
  loaded.config.max_position_embeddings =
      std::max(loaded.config.max_position_embeddings, options.prompt_tokens + options.tokens + 1);
  Engines engines{std::make_shared<const model::Model>(std::move(loaded)), load_text(options)};
  engine::EngineOptions how = options.engine;
  how.max_running_requests = *std::max_element(options.streams.begin(), options.streams.end());
  how.keep_prefixes = false;
  if (how.speculation != engine::Speculation::kNone)
    engines.speculating = std::make_unique<engine::Engine>(engines.model, how);
  how.speculation = engine::Speculation::kNone;
  engines.plain = std::make_unique<engine::Engine>(engines.model, how);
  return engines;
}

struct Rates {
  double plain = 0, speculating = 0;  // tokens/s, medians of runs by turns
};

Rates measure(const Engines& engines, const StreamsOptions& options, int num_streams) {
  std::vector<double> plain, speculating;
  for (int i = 0; i < options.repeats; ++i) {
    const auto all =
        prompts(options, engines.text, engines.model->config.vocab_size, num_streams, i);
    plain.push_back(run(*engines.plain, options, all));
    if (engines.speculating) speculating.push_back(run(*engines.speculating, options, all));
  }
  return {median(plain), speculating.empty() ? 0 : median(speculating)};
}

// 0 where nothing was drafted.
double accepted_share(const engine::Engine::Statistics& before,
                      const engine::Engine::Statistics& after) {
  const int64_t num_drafted = after.num_drafted_tokens - before.num_drafted_tokens;
  return static_cast<double>(after.num_accepted_tokens - before.num_accepted_tokens) /
         static_cast<double>(std::max<int64_t>(num_drafted, 1));
}

}  // namespace

Json measure_streams(const StreamsOptions& options) {
  if (options.num_threads > 0) base::set_num_threads(options.num_threads);
  const Engines engines = start_engines(options);
  Json result = {{"model", options.model.filename().string()}, {"threads", base::num_threads()},
                 {"prompt_tokens", options.prompt_tokens},     {"tokens", options.tokens},
                 {"temperature", options.temperature},         {"streams", Json::object()}};
  double one = 0;
  for (const int num_streams : options.streams) {
    const auto statistics = [&] {
      return engines.speculating ? engines.speculating->statistics() : engine::Engine::Statistics();
    };
    const engine::Engine::Statistics before = statistics();
    const Rates rates = measure(engines, options, num_streams);
    if (num_streams == 1) one = rates.plain;
    Json& row = result["streams"][std::to_string(num_streams)];
    row["tokens_per_s"] = rates.plain;
    if (one > 0) row["times_one_stream"] = rates.plain / one;
    if (!engines.speculating) continue;
    row["speculating_tokens_per_s"] = rates.speculating;
    row["speculating_times_plain"] = rates.speculating / rates.plain;
    row["accepted_share"] = accepted_share(before, statistics());
  }
  const MachinePeaks peaks = measure_machine();
  result["machine"] = {{"f32_gflop_per_s", peaks.f32_gflop_per_s},
                       {"read_gbyte_per_s", peaks.read_gbyte_per_s}};
  return result;
}

}  // namespace fathom::bench
