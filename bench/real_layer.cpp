#include "bench/real_layer.h"

#include <unistd.h>

#include <algorithm>

#include "base/random.h"

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

void check_memory(const model::Config& c) {
  const int64_t needed = 3 * c.hidden_size * c.moe_intermediate_size * c.n_routed_experts;
  const int64_t available = ::sysconf(_SC_AVPHYS_PAGES) * ::sysconf(_SC_PAGESIZE);
  if (needed > available)
    fail("{} experts take {:.1f} GB; {:.1f} GB of memory are free. Ask for fewer with --experts",
         c.n_routed_experts, static_cast<double>(needed) / 1e9,
         static_cast<double>(available) / 1e9);
}

}  // namespace

model::Model random_real_layer(int64_t num_experts) {
  const model::Config config = real_config(num_experts);
  if (config.n_routed_experts % config.n_group != 0)
    fail("{} experts do not fall into {} groups", config.n_routed_experts, config.n_group);
  check_memory(config);
  model::Model model{config, model::empty_weights(config)};
  torch::manual_seed(1);
  for (const model::TensorSlot& slot : model::tensor_slots(model.weights, config)) {
    if (slot.may_be_fp8) {
      *slot.tensor = torch::empty(slot.shape, torch::kByte);
      fill_e4m3(*slot.tensor);
      *slot.scale_inv =
          torch::full({(slot.shape[0] + 127) / 128, (slot.shape[1] + 127) / 128}, 1.0f / 64);
    } else if (slot.role == model::Role::kNorm) {
      *slot.tensor = torch::ones(slot.shape);
    } else {
      *slot.tensor = torch::randn(slot.shape) * 0.02;
    }
  }
  return model;
}

void fill(model::KvCache& cache, int64_t count) {
  const auto latents = torch::randn({1024, cache.layout().latent().dim()});
  const auto keys = torch::randn({1024, cache.layout().index_key().dim});
  for (int64_t at = 0; at < count; at += 1024) {
    const int64_t rows = std::min<int64_t>(1024, count - at), position = cache.num_tokens();
    for (int64_t layer = 0; layer < cache.layout().num_layers(); ++layer)
      cache.write(layer, position, {latents.data_ptr<float>(), rows, latents.size(1)},
                  {keys.data_ptr<float>(), rows, keys.size(1)});
    cache.advance(rows);
  }
}

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

}  // namespace fathom::bench
