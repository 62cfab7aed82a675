#include "bench/streams.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "base/parallel.h"
#include "base/progress.h"
#include "bench/machine.h"
#include "model/checkpoint.h"

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

double run(engine::Engine& engine, const model::Config& config, const StreamsOptions& options,
           int num_streams, int seed) {
  Counter counter(num_streams);
  for (int i = 0; i < num_streams; ++i) {
    engine::Request request;
    base::Random random(seed, i);
    for (int64_t t = 0; t < options.prompt_tokens; ++t)
      request.prompt.push_back(static_cast<int32_t>(random.below(config.vocab_size)));
    request.max_tokens = static_cast<int>(options.tokens);
    request.sampling.seed = static_cast<uint64_t>(i);
    engine.submit(std::move(request), [&, is_first = true](const auto& event) mutable {
      counter.take(event, is_first);
      is_first = false;
    });
  }
  return counter.tokens_per_second();
}

}  // namespace

Json measure_streams(const StreamsOptions& options) {
  if (options.num_threads > 0) base::set_num_threads(options.num_threads);
  model::Model loaded = model::load_checkpoint(options.model);
  // Positions beyond the trained ones cost the same.
  loaded.config.max_position_embeddings =
      std::max(loaded.config.max_position_embeddings, options.prompt_tokens + options.tokens + 1);
  const auto model = std::make_shared<const model::Model>(std::move(loaded));
  engine::EngineOptions engine_options = options.engine;
  engine_options.max_running_requests =
      *std::max_element(options.streams.begin(), options.streams.end());
  engine_options.keep_prefixes = false;
  engine::Engine engine(model, engine_options);
  Json result = {{"model", options.model.filename().string()},
                 {"threads", base::num_threads()},
                 {"prompt_tokens", options.prompt_tokens},
                 {"tokens", options.tokens},
                 {"streams", Json::object()}};
  double one = 0;
  for (const int num_streams : options.streams) {
    std::vector<double> rates;
    for (int i = 0; i < options.repeats; ++i)
      rates.push_back(run(engine, model->config, options, num_streams, i));
    std::sort(rates.begin(), rates.end());
    const double rate = rates[rates.size() / 2];
    if (num_streams == 1) one = rate;
    Json& row = result["streams"][std::to_string(num_streams)];
    row["tokens_per_s"] = rate;
    if (one > 0) row["times_one_stream"] = rate / one;
  }
  const MachinePeaks peaks = measure_machine();
  result["machine"] = {{"f32_gflop_per_s", peaks.f32_gflop_per_s},
                       {"read_gbyte_per_s", peaks.read_gbyte_per_s}};
  return result;
}

}  // namespace fathom::bench
