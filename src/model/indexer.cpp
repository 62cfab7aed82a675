#include "model/indexer.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "kernels/fp8.h"
#include "kernels/lightning_indexer.h"
#include "model/kv_cache.h"
#include "model/ops.h"

namespace fathom::model {
namespace {

using torch::Tensor;

// Hadamard, then FP8: x becomes the unscaled values; returns one scale a row.
Tensor quantise_rotated(Tensor& x_MX) {
  kernels::hadamard(ops::view2(x_MX));
  const int64_t groups = (x_MX.size(1) + kernels::kQuantGroup - 1) / kernels::kQuantGroup;
  CHECK_EQ(groups, 1);
  Tensor scale = torch::empty({x_MX.size(0), 1});
  kernels::quantise_activations(ops::view2(x_MX), ops::view2(x_MX), ops::view2(scale));
  return scale.squeeze(1);
}

void round_to_bf16(Tensor& x) {
  const auto count = static_cast<size_t>(x.numel());
  kernels::round_to_bf16({x.data_ptr<float>(), count}, {x.data_ptr<float>(), count});
}

kernels::IndexerInput input_of(const IndexerProjections& projections, const QueryTile& tile,
                               int64_t layer) {
  const auto rows = [&](const Tensor& x) {
    return ops::view2(x).slice_rows(tile.first, tile.first + tile.count);
  };
  return {rows(projections.q_NJX), rows(projections.w_NJ),
          tile.cache->index_keys(layer, tile.position + tile.count)};
}

// Keys in pages of their own, as a cache would hold them.
class IndexKeys {
 public:
  explicit IndexKeys(const kernels::IndexKeyLayout& layout) : layout_(layout) {}

  void assign(View2<const float> k_SX) {
    const int64_t num_pages = (k_SX.rows + kernels::kPageRows - 1) / kernels::kPageRows;
    while (std::ssize(storage_) < num_pages) storage_.emplace_back(layout_.page_bytes());
    pages_.clear();
    for (CachePage& page : storage_) pages_.push_back(page.data());
    num_keys_ = k_SX.rows;
    base::parallel_for(num_pages, 4, [&](int64_t begin, int64_t end) {
      const int64_t end_key = std::min(end * kernels::kPageRows, k_SX.rows);
      for (int64_t s = begin * kernels::kPageRows; s < end_key; ++s)
        kernels::store_index_key(layout_, k_SX[s], s % kernels::kPageRows,
                                 storage_[s / kernels::kPageRows].data());
    });
  }
  kernels::IndexKeyPages pages() const { return {layout_, pages_.data(), num_keys_}; }

 private:
  kernels::IndexKeyLayout layout_;
  std::vector<CachePage> storage_;
  std::vector<const std::byte*> pages_;
  int64_t num_keys_ = 0;
};

// The rotary part comes first here (MLA has it last), in halves (MLA interleaves).
kernels::Rope rotation(const Config& config, int64_t num_heads) {
  return {
      num_heads, config.index_head_dim, 0, config.qk_rope_head_dim, config.indexer_rope_interleave,
      false};
}

bool rounds_to_bf16(const ForwardOptions& options) {
  return options.mode != NumericMode::kDeploy && options.bf16_matmuls &&
         !torch::GradMode::is_enabled();
}

void project_queries(const IndexerWeights& weights, const Config& config, const Tensor& x_ND,
                     const Tensor& q_latent_NQ, const RopeTable& rope,
                     const ForwardOptions& options, IndexerProjections& out) {
  const int64_t tokens = x_ND.size(0), heads = config.index_n_heads, dim = config.index_head_dim;
  const bool is_deploy = options.mode == NumericMode::kDeploy;
  out.q_NJX = ops::rope(ops::linear(q_latent_NQ, weights.wq_b, {options.bf16_matmuls, is_deploy}),
                        rope.cos_NR2, rope.sin_NR2, rotation(config, heads));
  const double scale = 1 / std::sqrt(static_cast<double>(heads * dim));
  out.w_NJ = ops::linear(x_ND, weights.weights_proj, {}) * scale;
  if (is_deploy) {
    Tensor q = out.q_NJX.view({tokens * heads, dim});
    out.w_NJ = out.w_NJ * quantise_rotated(q).view({tokens, heads});
  }
  if (rounds_to_bf16(options)) round_to_bf16(out.q_NJX);
}

}  // namespace

IndexerProjections project_indexer(const IndexerWeights& weights, const Config& config,
                                   const Tensor& x_ND, const Tensor& q_latent_NQ,
                                   const RopeTable& rope, const ForwardOptions& options) {
  const bool is_deploy = options.mode == NumericMode::kDeploy;
  IndexerProjections out;
  if (q_latent_NQ.defined())
    project_queries(weights, config, x_ND, q_latent_NQ, rope, options, out);
  out.k_NX = ops::rope(
      torch::layer_norm(ops::linear(x_ND, weights.wk, {options.bf16_matmuls, is_deploy}),
                        {config.index_head_dim}, weights.k_norm_weight, weights.k_norm_bias, 1e-6),
      rope.cos_NR2, rope.sin_NR2, rotation(config, 1));
  if (is_deploy) out.k_NX = out.k_NX * quantise_rotated(out.k_NX).unsqueeze(1);
  if (rounds_to_bf16(options)) round_to_bf16(out.k_NX);
  return out;
}

void select_keys(const IndexerProjections& projections, const QueryTile& tile, int64_t layer,
                 const Config& config, std::span<std::vector<int32_t>> keys_T) {
  kernels::select_keys(input_of(projections, tile, layer), config.index_topk, keys_T);
}

ops::KeySelection select_in_segments(const IndexerProjections& projections,
                                     std::span<const ops::SegmentRows> segments,
                                     const Config& config, const ForwardOptions& options) {
  const auto selects = [&](const ops::SegmentRows& at) { return at.key_count > config.index_topk; };
  if (std::none_of(segments.begin(), segments.end(), selects)) return {};
  Tensor q = projections.q_NJX.detach().contiguous();
  const Tensor k = projections.k_NX.detach().contiguous();
  const Tensor w = projections.w_NJ.detach().contiguous();
  // As in serving, which keeps keys in bf16.
  const bool is_bf16 = options.bf16_matmuls;
  if (is_bf16) {
    q = q.clone();
    round_to_bf16(q);
  }
  std::vector<std::vector<int32_t>> keys_N(q.size(0));
  IndexKeys keys({is_bf16 ? kernels::RowFormat::kBF16 : kernels::RowFormat::kF32, k.size(1)});
  for (const ops::SegmentRows& at : segments) {
    if (!selects(at)) continue;
    keys.assign(ops::view2(k).slice_rows(at.key_begin, at.key_begin + at.key_count));
    kernels::select_keys({ops::view2(q).slice_rows(at.begin, at.begin + at.count),
                          ops::view2(w).slice_rows(at.begin, at.begin + at.count), keys.pages()},
                         config.index_topk, std::span(keys_N).subspan(at.begin, at.count));
  }
  return ops::join_keys(keys_N);
}

Tensor index_scores(const IndexerProjections& projections, const QueryTile& tile, int64_t layer) {
  Tensor scores = torch::empty({tile.count, tile.position + tile.count});
  kernels::index_scores(input_of(projections, tile, layer), ops::view2(scores));
  return scores;
}

}  // namespace fathom::model
