// Multi-head latent attention (report of V2, section 2.1) with DSA's selection (report of V3.2,
// section 2.1), in its MHA and its MQA (absorbed) form.
#pragma once

#include "model/rope.h"
#include "model/transformer.h"

namespace fathom::model {

struct AttentionInput {
  const AttentionWeights& weights;
  const Config& config;
  int64_t layer = 0;  // index into the caches
  std::span<const Segment> segments;
  const RopeTable& rope;  // of every token
  const ForwardOptions& options;
  LayerTrace* trace = nullptr;
  ForwardStatistics* statistics = nullptr;
};

// x_ND: the normed residual stream. Returns what attention adds to it.
// Segments without a cache attend within themselves, in the MHA form, and are differentiable: how
// training runs. With options.sparse, those longer than index_topk attend to what the indexer (or
// another options.key_rule) selects. The indexer's input is detached (report of V3.2, section
// 2.1.1). Where ranks share the batch (options.distribution->sequence), a segment's keys before its
// position are another rank's. Segments with a cache run without gradient.
torch::Tensor mla_attention(const AttentionInput& input, const torch::Tensor& x_ND);

}  // namespace fathom::model
