// The lightning indexer's projections (report of V3.2, section 2.1): which keys each query will
// see.
#pragma once

#include "model/rope.h"
#include "model/transformer.h"

namespace fathom::model {

// What the indexer makes of new tokens. In deploy mode q and k went through the Hadamard transform
// and FP8: q and k hold unscaled e4m3 values, w includes q's scales, k_scale holds k's.
struct IndexerProjections {
  torch::Tensor q_NJX;  // [N, J * X]
  torch::Tensor w_NJ;   // head weights, J^-0.5 * X^-0.5 included
  torch::Tensor k_NX;
  torch::Tensor k_scale_N;  // ones in plain mode
};

// x_ND is the layer's normed input, q_latent_NQ the normed query latent.
IndexerProjections project_indexer(const IndexerWeights& weights, const Config& config,
                                   const torch::Tensor& x_ND, const torch::Tensor& q_latent_NQ,
                                   const RopeTable& rope, const ForwardOptions& options);

// Selected keys of each query of one segment, ascending; the query at position p chooses from keys
// 0..p. Where p < index_topk that is all of them.
struct Selection {
  std::vector<std::vector<int32_t>> keys_T;
  torch::Tensor index_scores_TS;  // filled if asked for
};
Selection select_keys(const IndexerProjections& projections, int64_t first, int64_t count,
                      const KvCache& cache, int64_t layer, const Config& config, bool keep_scores);

}  // namespace fathom::model
