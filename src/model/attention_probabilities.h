// Attention's probabilities, whole, a block of queries at a time: for experiments that look at
// them. What trains and serves never stores them (kernels/attention).
#pragma once

#include <functional>
#include <span>

#include "model/attention_ops.h"

namespace fathom::model {

// A batch's rotated queries and keys, [N, H * qk] f32 contiguous, in segments one behind another.
struct AttendedSegments {
  torch::Tensor q_NHD, k_NHD;
  kernels::AttentionShape shape;
  std::span<const int64_t> lengths;
};

// Queries [begin, begin + T) of the segment that begins with the batch's row `segment`, and the
// keys [0, S) that any of them may see: S = begin + T.
struct ProbabilityBlock {
  int64_t segment = 0;
  int64_t begin = 0;
  torch::Tensor q_HTD, k_HSD;
  torch::Tensor allowed_TS;  // bool: causal and selected
  torch::Tensor p_HTS;       // softmax over the allowed keys; 0 elsewhere
};

// Calls body with one block after another, without gradients. `selection` as in ops::attend.
// Allocates [H, 64, S] a block. No oracle beside it: key_rule_test and teacher_gradient_test hold
// what is made of it against the kernels.
void for_each_probability_block(const AttendedSegments& attended,
                                const ops::KeySelection& selection,
                                const std::function<void(const ProbabilityBlock&)>& body);

// -sum p log p of one query's head, nats, mean over queries and heads.
double mean_entropy(const AttendedSegments& attended, const ops::KeySelection& selection);

}  // namespace fathom::model
