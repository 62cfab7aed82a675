#include "bench/attention_rates.h"

#include "base/parallel.h"
#include "bench/real_layer.h"
#include "bench/timing.h"
#include "kernels/attention.h"
#include "kernels/fp8.h"
#include "kernels/lightning_indexer.h"
#include "kernels/sparse_mla.h"
#include "model/ops.h"

namespace fathom::bench {
namespace {

using model::Config;
using torch::Tensor;

constexpr int64_t kNumKeys = 4096;

double rate(double operations, const std::function<void()>& run) {
  const bool is_alone = base::num_threads() == 1;
  return operations / best_seconds({3, 200, 0.3, is_alone}, [&](int) { run(); });
}

double operations(std::initializer_list<int64_t> factors) {
  double product = 2;
  for (const int64_t factor : factors) product *= static_cast<double>(factor);
  return product;
}

// As the MHA form does it: rows widened, multiplied, the rotary key copied to every head.
double expansion_rate(const model::Model& model, const kernels::PagedRows& latents) {
  const Config& c = model.config;
  const model::ForwardOptions options = model::serving_options(model);
  const bool is_deploy = options.mode == model::NumericMode::kDeploy;
  const int64_t heads = c.num_attention_heads, head_rows = c.qk_nope_head_dim + c.v_head_dim;
  const Tensor cached = torch::empty({kNumKeys, latents.layout.dim()});
  return rate(operations({kNumKeys, c.kv_lora_rank, heads, head_rows}), [&] {
    base::parallel_for(kNumKeys, 64, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s)
        kernels::widen_row(latents.layout, latents[s],
                           cached.data_ptr<float>() + s * latents.layout.dim());
    });
    const auto parts = cached.split_with_sizes({c.kv_lora_rank, c.qk_rope_head_dim}, 1);
    const auto kv = model::ops::linear(parts[0], model.weights.layers[0].self_attn.kv_b_proj,
                                       {options.bf16_matmuls, is_deploy})
                        .view({kNumKeys, heads, head_rows})
                        .split_with_sizes({c.qk_nope_head_dim, c.v_head_dim}, 2);
    const Tensor rope = parts[1].unsqueeze(1).expand({kNumKeys, heads, c.qk_rope_head_dim});
    torch::cat({kv[0], rope}, 2);
    kv[1].reshape({kNumKeys, heads * c.v_head_dim});
  });
}

double absorption_rate(const model::Model& model, int64_t num_queries) {
  const Config& c = model.config;
  const auto& kv_b_proj = model.weights.layers[0].self_attn.kv_b_proj;
  const Tensor latents = torch::randn({num_queries, c.kv_lora_rank});
  const int64_t width = c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim);
  return rate(operations({num_queries, c.kv_lora_rank, width}), [&] {
    model::ops::linear(latents, kv_b_proj, {true, false});
  });
}

double masked_rate(const Config& c, kernels::Precision precision, int64_t num_queries) {
  const int64_t heads = c.num_attention_heads;
  const Tensor q = torch::randn({num_queries, heads * c.qk_head_dim()});
  const Tensor k = torch::randn({kNumKeys, heads * c.qk_head_dim()});
  const Tensor v = torch::randn({kNumKeys, heads * c.v_head_dim});
  Tensor out = torch::empty({num_queries, heads * c.v_head_dim});
  Tensor lse = torch::empty({heads, num_queries});
  std::vector<uint8_t> allowed(num_queries * kNumKeys);
  const int64_t step = std::max<int64_t>(1, kNumKeys / c.index_topk);
  for (size_t i = 0; i < allowed.size(); i += step) allowed[i] = 1;
  const kernels::AttentionForward io{model::ops::view2(q),   model::ops::view2(k),
                                     model::ops::view2(v),   model::ops::view2(out),
                                     model::ops::view2(lse), {allowed.data(), kNumKeys}};
  const kernels::AttentionShape shape{heads, c.qk_head_dim(), c.v_head_dim, 0.1f, precision};
  return rate(operations({num_queries, kNumKeys, heads, c.qk_head_dim() + c.v_head_dim}), [&] {
    base::parallel_for(heads, 1, [&](int64_t begin, int64_t end) {
      kernels::attention_forward(shape, io, begin, end);
    });
  });
}

double gathered_rate(const Config& c, const kernels::PagedRows& latents, int64_t num_queries) {
  const int64_t heads = c.num_attention_heads, width = latents.layout.dim();
  const int64_t num_keys = std::min(c.index_topk, kNumKeys);
  const Tensor q = torch::randn({num_queries, heads, width});
  Tensor out = torch::empty({num_queries, heads, c.kv_lora_rank});
  std::vector<int32_t> keys(num_keys);
  for (int64_t i = 0; i < num_keys; ++i) keys[i] = static_cast<int32_t>(i * kNumKeys / num_keys);
  return rate(operations({num_queries, num_keys, heads, width + c.kv_lora_rank}), [&] {
    base::parallel_for(num_queries, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        kernels::sparse_mla(
            {{q.data_ptr<float>() + t * heads * width, heads, width},
             latents,
             keys.data(),
             num_keys,
             0.1f,
             {out.data_ptr<float>() + t * heads * c.kv_lora_rank, heads, c.kv_lora_rank}});
    });
  });
}

double indexer_rate(const Config& c, const kernels::IndexKeyPages& index_keys, bool is_deploy,
                    int64_t num_queries) {
  const Tensor q = torch::randn({num_queries, c.index_n_heads * c.index_head_dim});
  if (is_deploy) kernels::round_through_fp8(model::ops::view2(q), model::ops::view2(q));
  const Tensor w = torch::rand({num_queries, c.index_n_heads});
  std::vector<std::vector<int32_t>> keys(num_queries);
  return rate(operations({num_queries, kNumKeys, c.index_n_heads, c.index_head_dim}), [&] {
    kernels::select_keys({model::ops::view2(q), model::ops::view2(w), index_keys}, c.index_topk,
                         keys);
  });
}

}  // namespace

model::AttentionRates measure_attention_rates(const model::Model& model, model::CacheFormat format,
                                              int64_t num_queries) {
  const Config& c = model.config;
  const model::ForwardOptions options = model::serving_options(model);
  const bool is_deploy = options.mode == model::NumericMode::kDeploy;
  const auto precision =
      options.bf16_matmuls ? kernels::Precision::kBF16 : kernels::Precision::kF32;
  model::KvCache cache(c, format);
  fill(cache, kNumKeys);
  return {expansion_rate(model, cache.latent(0, kNumKeys)), absorption_rate(model, num_queries),
          masked_rate(c, precision, num_queries),
          gathered_rate(c, cache.latent(0, kNumKeys), num_queries),
          indexer_rate(c, cache.index_keys(0, kNumKeys), is_deploy, num_queries)};
}

}  // namespace fathom::bench
