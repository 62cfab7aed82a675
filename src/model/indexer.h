// The lightning indexer's projections (report of V3.2, section 2.1): which keys each query will
// see.
#pragma once

#include "model/attention_ops.h"
#include "model/rope.h"
#include "model/transformer.h"

namespace fathom::model {

// What the indexer makes of new tokens. In deploy mode q and k went through the Hadamard transform
// and FP8: q holds unscaled e4m3 values, w includes q's scales, k's are multiplied in (powers of
// two: exact).
struct IndexerProjections {
  torch::Tensor q_NJX;  // [N, J * X]
  torch::Tensor w_NJ;   // head weights, J^-0.5 * X^-0.5 included
  torch::Tensor k_NX;
};

// x_ND is the layer's normed input, q_latent_NQ the normed query latent, or x_ND again where the
// model has no query latent (q_lora_rank null: ours, the report's always has one). Undefined, where
// no query selects, the keys are all that is made.
IndexerProjections project_indexer(const IndexerWeights& weights, const Config& config,
                                   const torch::Tensor& x_ND, const torch::Tensor& q_latent_NQ,
                                   const RopeTable& rope, const ForwardOptions& options);

// Some queries of one segment: rows [first, first + count) of the batch, from `position` on.
struct QueryTile {
  int64_t first = 0;
  int64_t count = 0;
  int64_t position = 0;
  const KvCache* cache = nullptr;
};

// keys_T[i]: what query i of the tile selects, ascending; the query at position p chooses from keys
// 0..p. Where p < index_topk that is all of them.
void select_keys(const IndexerProjections& projections, const QueryTile& tile, int64_t layer,
                 const Config& config, std::span<std::vector<int32_t>> keys_T);

// The same without caches, for training: segments of no more than index_topk keys get no lists,
// since they select everything. k_NX may hold more keys than there are queries.
ops::KeySelection select_in_segments(const IndexerProjections& projections,
                                     std::span<const ops::SegmentRows> segments,
                                     const Config& config, const ForwardOptions& options);

// [count, position + count] f32, -inf for later keys.
torch::Tensor index_scores(const IndexerProjections& projections, const QueryTile& tile,
                           int64_t layer);

}  // namespace fathom::model
