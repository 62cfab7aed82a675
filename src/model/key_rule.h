// What queries see by a rule that needs no indexer: the controls of the experiments (KeyRule).
#pragma once

#include <span>

#include "model/attention_ops.h"
#include "model/transformer.h"

namespace fathom::model {

struct KeyRuleInput {
  KeyRule rule = KeyRule::kWindow;
  int64_t top_k = 0;
  uint64_t seed = 0;  // kRandom
  int64_t layer = 0;
  torch::Tensor q_NHD, k_NHD;  // kOracle: attention's own; no gradient passes
  kernels::AttentionShape shape;
};

// min(top_k, t + 1) keys of those at or before each query t, ascending; segments no longer than
// top_k get no lists, since they select everything. Of the oracle, ties go to the lower key.
ops::KeySelection select_by_rule(const KeyRuleInput& input,
                                 std::span<const int64_t> segment_lengths);

}  // namespace fathom::model
