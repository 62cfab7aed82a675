#include "bench/layer.h"

#include <torch/csrc/autograd/grad_mode.h>

#include "base/parallel.h"
#include "bench/machine.h"
#include "bench/real_layer.h"
#include "bench/timing.h"

namespace fathom::bench {
Json measure_layer(const LayerOptions& options) {
  if (options.num_threads > 0) base::set_num_threads(options.num_threads);
  const torch::NoGradGuard no_grad;
  const MachinePeaks peaks = measure_machine();
  const model::Model model = random_real_layer(options.num_experts);
  const model::Config& config = model.config;
  const int64_t bytes = weight_bytes_per_token(config);
  const model::ForwardOptions forward = model::serving_options(model);
  // Different tokens take different experts, so that weights come from memory.
  const torch::Tensor hidden = torch::randn({8 * options.prefill_tokens, config.hidden_size});
  const auto run_ms = [&](model::KvCache& cache, int64_t count) {
    const model::Segment segment{count, cache.num_tokens(), &cache};
    return 1e3 * best_seconds({}, [&](int i) {
             model::forward_layer(model, 0, hidden.narrow(0, i * count, count), {&segment, 1},
                                  forward);
           });
  };
  Json result = {
      {"threads", base::num_threads()},
      {"experts", config.n_routed_experts},
      {"weight_bytes_per_token", bytes},
      {"machine",
       {{"f32_gflop_per_s", peaks.f32_gflop_per_s}, {"read_gbyte_per_s", peaks.read_gbyte_per_s}}},
      {"contexts", Json::array()}};
  for (const int64_t context : options.contexts) {
    model::KvCache cache(config, model::CacheFormat::kFP8);
    fill(cache, context);
    const double decode_ms = run_ms(cache, 1);
    const double prefill_ms =
        run_ms(cache, options.prefill_tokens) / static_cast<double>(options.prefill_tokens);
    result["contexts"].push_back(
        {{"context", context},
         {"decode_ms", decode_ms},
         {"decode_share_of_read_bandwidth",
          static_cast<double>(bytes) / decode_ms * 1e-6 / peaks.read_gbyte_per_s},
         {"prefill_ms", prefill_ms}});
  }
  return result;
}

}  // namespace fathom::bench
