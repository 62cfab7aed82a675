#include "model/indexer.h"

#include <cmath>

#include "base/parallel.h"
#include "kernels/fp8.h"
#include "kernels/lightning_indexer.h"
#include "model/ops.h"

namespace fathom::model {
namespace {

using torch::Tensor;

// Queries whose scores are held at once by a thread.
constexpr int64_t kQueryTile = 16;

// Hadamard, then FP8: x becomes the unscaled values; returns one scale a row.
Tensor quantise_rotated(Tensor& x_MX) {
  kernels::hadamard(ops::view2(x_MX));
  const int64_t groups = (x_MX.size(1) + kernels::kQuantGroup - 1) / kernels::kQuantGroup;
  CHECK_EQ(groups, 1);
  Tensor scale = torch::empty({x_MX.size(0), 1});
  kernels::quantise_activations(ops::view2(x_MX), ops::view2(x_MX), ops::view2(scale));
  return scale.squeeze(1);
}

}  // namespace

IndexerProjections project_indexer(const IndexerWeights& weights, const Config& config,
                                   const Tensor& x_ND, const Tensor& q_latent_NQ,
                                   const RopeTable& rope, const ForwardOptions& options) {
  const int64_t tokens = x_ND.size(0), heads = config.index_n_heads, dim = config.index_head_dim;
  const bool is_deploy = options.mode == NumericMode::kDeploy;
  const ops::LinearOptions linear{options.bf16_matmuls, is_deploy};
  // The rotary part comes first here (MLA has it last), in halves (MLA interleaves).
  kernels::Rope rotation{heads, dim, 0, config.qk_rope_head_dim, config.indexer_rope_interleave,
                         false};
  IndexerProjections out;
  out.q_NJX = ops::rope(ops::linear(q_latent_NQ, weights.wq_b, linear), rope.cos_NR2, rope.sin_NR2,
                        rotation);
  rotation.num_heads = 1;
  const Tensor k = torch::layer_norm(ops::linear(x_ND, weights.wk, linear), {dim},
                                     weights.k_norm_weight, weights.k_norm_bias, 1e-6);
  out.k_NX = ops::rope(k, rope.cos_NR2, rope.sin_NR2, rotation);
  const double scale = 1 / std::sqrt(static_cast<double>(heads * dim));
  out.w_NJ = ops::linear(x_ND, weights.weights_proj, {}) * scale;
  out.k_scale_N = torch::ones({tokens});
  if (is_deploy) {
    Tensor q = out.q_NJX.view({tokens * heads, dim});
    out.w_NJ = out.w_NJ * quantise_rotated(q).view({tokens, heads});
    out.k_scale_N = quantise_rotated(out.k_NX);
  }
  return out;
}

Selection select_keys(const IndexerProjections& projections, int64_t first, int64_t count,
                      const KvCache& cache, int64_t layer, const Config& config, bool keep_scores) {
  const int64_t num_keys = cache.num_tokens() + count;
  const auto rows = [&](const Tensor& x) { return ops::view2(x).slice_rows(first, first + count); };
  Selection selection;
  selection.keys_T.resize(count);
  if (keep_scores) selection.index_scores_TS = torch::empty({count, num_keys});
  // A few queries at a time, their scores never stored beyond these rows.
  base::parallel_for(count, kQueryTile, [&](int64_t begin, int64_t end) {
    std::vector<float> scores(kQueryTile * num_keys);
    for (int64_t tile = begin; tile < end; tile += kQueryTile) {
      const int64_t tile_end = std::min(tile + kQueryTile, end);
      const int64_t visible = cache.num_tokens() + tile_end;
      const View2<float> rows_TS(scores.data(), tile_end - tile, visible);
      kernels::index_scores({rows(projections.q_NJX).slice_rows(tile, tile_end),
                             rows(projections.w_NJ).slice_rows(tile, tile_end),
                             cache.index_keys(layer, visible), cache.index_scales(layer), rows_TS});
      for (int64_t t = tile; t < tile_end; ++t) {
        const float* row = rows_TS[t - tile];
        kernels::top_k({row, static_cast<size_t>(cache.num_tokens() + t + 1)}, config.index_topk,
                       selection.keys_T[t]);
        if (!keep_scores) continue;
        float* kept = selection.index_scores_TS.data_ptr<float>() + t * num_keys;
        std::fill(std::copy_n(row, visible, kept), kept + num_keys, -INFINITY);
      }
    }
  });
  return selection;
}

}  // namespace fathom::model
