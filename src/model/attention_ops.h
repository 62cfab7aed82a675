// Training's attention and the indexer's loss as differentiable ops: the seam to kernels/attention,
// kernels/sparse_attention and kernels/indexer_loss, as model/ops is to the others. Tensors are
// contiguous f32. No double backward. Tests: model/attention_ops_test.cpp.
#pragma once

#include <span>
#include <vector>

#include "kernels/attention.h"
#include "kernels/selected_keys.h"
#include "model/tensor.h"

namespace fathom::model::ops {

// One segment: its queries are rows of q, its keys rows of k and v, which no other segment has. The
// queries are its last: query i stands at key_count - count + i.
struct SegmentRows {
  int64_t begin = 0, count = 0;
  int64_t key_begin = 0, key_count = 0;
};
// Segments one behind another, each with a key a query.
std::vector<SegmentRows> segment_rows(std::span<const int64_t> lengths);

// What each token of a batch attends to, by positions within its segment; a segment all of whose
// lists are empty is attended to densely. Undefined tensors: every segment is.
struct KeySelection {
  torch::Tensor keys;       // i32, all lists one behind another
  torch::Tensor begins_N1;  // i64: where each token's list begins, and the end

  bool defined() const { return keys.defined(); }
};

// The lists of all tokens, one behind another.
KeySelection join_keys(const std::vector<std::vector<int32_t>>& keys_N);

struct Attended {
  torch::Tensor out_NHV;
  torch::Tensor lse_HN;  // log-sum-exp of the scaled scores attended to; carries no gradient
  // Beside selection.keys, the mean over heads of the keys' probabilities; carries no gradient.
  // Undefined unless wanted.
  torch::Tensor probabilities;
};

// Causal attention within each segment; q [N, H*qk], k [S, H*qk], v [S, H*v]. Gradients for q, k,
// v; none passes through the selection. Parallel over segments and heads.
Attended attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                const kernels::AttentionShape& shape, std::span<const SegmentRows> segments,
                const KeySelection& selection = {}, bool wants_probabilities = false);

// The indexer's side of its loss, with gradients: model/indexer's projections.
struct IndexerLossStudent {
  torch::Tensor q_NJX, w_NJ, k_SX;
};

// Attention's side, always detached: the report's cut between the indexer and the main model.
struct IndexerLossTeacher {
  torch::Tensor q, k, lse_HN;
  kernels::AttentionShape shape;
  torch::Tensor probabilities = {};  // as attend gave them; undefined: computed again
};

struct IndexerLoss {
  torch::Tensor loss;  // mean over tokens of KL(attention || softmax of index scores), nats
  double recall = 0;   // attention's mass on the recall_k best keys, mean over densely seen tokens
};

// Over all keys in densely attended segments, over the selected ones in the others. Computes the
// gradients at once where any is wanted.
IndexerLoss indexer_loss(const IndexerLossStudent& student, const IndexerLossTeacher& teacher,
                         std::span<const SegmentRows> segments, const KeySelection& selection,
                         int64_t recall_k);

}  // namespace fathom::model::ops
