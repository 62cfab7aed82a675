#include "bench/layer.h"

#include <torch/csrc/autograd/grad_mode.h>
#include <unistd.h>

#include <algorithm>

#include "base/parallel.h"
#include "base/random.h"
#include "bench/machine.h"
#include "bench/timing.h"
#include "model/transformer.h"

namespace fathom::bench {
namespace {

using torch::Tensor;

model::Config real_config(int64_t num_experts) {
  model::Config c;  // V3.2's shapes where nothing else is said
  c.vocab_size = 128;
  c.hidden_size = 7168;
  c.num_hidden_layers = 1;
  c.num_nextn_predict_layers = 0;
  c.intermediate_size = 18432;
  c.max_position_embeddings = 163840;
  c.num_attention_heads = 128;
  c.q_lora_rank = 1536;
  c.kv_lora_rank = 512;
  c.qk_nope_head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.v_head_dim = 128;
  c.index_n_heads = 64;
  c.index_head_dim = 128;
  c.index_topk = 2048;
  c.first_k_dense_replace = 0;
  c.n_routed_experts = num_experts;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 8;
  c.n_group = 8;
  c.topk_group = 4;
  c.moe_intermediate_size = 2048;
  c.routed_scaling_factor = 2.5;
  return c;
}

// e4m3 bytes of magnitude 0.5 to 1.9, a megabyte of them repeated.
void fill_e4m3(Tensor& weight) {
  static const auto pattern = [] {
    std::vector<uint8_t> bytes(1 << 20);
    base::Random random(1);
    for (uint8_t& byte : bytes)
      byte = static_cast<uint8_t>(0x30 + random.below(16) + 0x80 * random.below(2));
    return bytes;
  }();
  auto* data = weight.data_ptr<uint8_t>();
  for (int64_t at = 0; at < weight.numel(); at += std::ssize(pattern))
    std::copy_n(pattern.begin(), std::min<int64_t>(std::ssize(pattern), weight.numel() - at),
                data + at);
}

model::Model random_layer(const model::Config& config) {
  model::Model model{config, model::empty_weights(config)};
  torch::manual_seed(1);
  for (const model::TensorSlot& slot : model::tensor_slots(model.weights, config)) {
    if (slot.may_be_fp8) {
      *slot.tensor = torch::empty(slot.shape, torch::kByte);
      fill_e4m3(*slot.tensor);
      *slot.scale_inv =
          torch::full({(slot.shape[0] + 127) / 128, (slot.shape[1] + 127) / 128}, 0.02f);
    } else if (slot.role == model::Role::kNorm) {
      *slot.tensor = torch::ones(slot.shape);
    } else {
      *slot.tensor = torch::randn(slot.shape) * 0.02;
    }
  }
  return model;
}

// `count` tokens before the measured ones; 1,024 different rows repeated.
void fill(model::KvCache& cache, int64_t count) {
  const auto latents = torch::randn({1024, cache.layout().latent().dim()});
  const auto keys = torch::randn({1024, cache.layout().index_key().dim()});
  for (int64_t at = 0; at < count; at += 1024) {
    const int64_t rows = std::min<int64_t>(1024, count - at);
    cache.write(0, at, {latents.data_ptr<float>(), rows, latents.size(1)},
                {keys.data_ptr<float>(), rows, keys.size(1)});
    cache.advance(rows);
  }
}

// What one token reads: attention, router, the shared and its routed experts.
int64_t weight_bytes_per_token(const model::Config& c) {
  const int64_t expert = 3 * c.hidden_size * c.moe_intermediate_size;
  const int64_t attention =
      c.hidden_size * (c.q_lora_rank + c.kv_lora_rank + c.qk_rope_head_dim + c.index_head_dim) +
      c.q_lora_rank *
          (c.num_attention_heads * c.qk_head_dim() + c.index_n_heads * c.index_head_dim) +
      c.kv_lora_rank * c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim) +
      c.hidden_size * c.num_attention_heads * c.v_head_dim;
  return attention + (c.num_experts_per_tok + c.n_shared_experts) * expert +
         4 * c.hidden_size * (c.n_routed_experts + c.index_n_heads);
}

void check_memory(const model::Config& c) {
  const int64_t needed = 3 * c.hidden_size * c.moe_intermediate_size * c.n_routed_experts;
  const int64_t available = ::sysconf(_SC_AVPHYS_PAGES) * ::sysconf(_SC_PAGESIZE);
  if (needed > available)
    fail("{} experts take {:.1f} GB; {:.1f} GB of memory are free. Ask for fewer with --experts",
         c.n_routed_experts, static_cast<double>(needed) / 1e9,
         static_cast<double>(available) / 1e9);
}

}  // namespace

Json measure_layer(const LayerOptions& options) {
  if (options.num_threads > 0) base::set_num_threads(options.num_threads);
  const model::Config config = real_config(options.num_experts);
  if (config.n_routed_experts % config.n_group != 0)
    fail("{} experts do not fall into {} groups", config.n_routed_experts, config.n_group);
  check_memory(config);
  const torch::NoGradGuard no_grad;
  const MachinePeaks peaks = measure_machine();
  const model::Model model = random_layer(config);
  const int64_t bytes = weight_bytes_per_token(config);
  const model::ForwardOptions forward{.mode = model::NumericMode::kDeploy};
  // Different tokens take different experts, so that weights come from memory.
  const Tensor hidden = torch::randn({8 * options.prefill_tokens, config.hidden_size});
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
