// What the indexer's loss would do to attention if attention, its teacher, were not detached: the
// cut of the report of V3.2, section 2.1.1, taken away (experiment E2).
#pragma once

#include <span>

#include "model/attention_ops.h"

namespace fathom::model::ops {

// Zero, with the gradient of indexer_loss(...).loss for teacher.q and teacher.k alone, through
// every head's softmax: with G = log p - log softmax(I) and p the mean of the heads' probabilities
// P_h,
//   dL/dscore_h[t,s] = P_h[t,s] (G[t,s] - sum_u P_h[t,u] G[t,u]) / (H N).
// Adding it to indexer_loss gives the loss without the cut. In torch ops, blocks of 64 queries:
// slow. Oracle: differences of indexer_loss, 1%.
torch::Tensor teacher_gradient(const IndexerLossStudent& student, const IndexerLossTeacher& teacher,
                               std::span<const int64_t> segment_lengths,
                               const KeySelection& selection);

}  // namespace fathom::model::ops
