// The selected form of indexer_loss for processors with bf16 dot products: products in bf16 with
// f32 sums, everything else in f32. What indexer_loss takes where precision is kBF16.
#pragma once

#include <vector>

#include "kernels/gathered_bf16.h"
#include "kernels/indexer_loss.h"

namespace fathom::kernels {

// A sequence's operands, rounded.
struct IndexerLossRows {
  HeadRows q, k;              // attention's, where the input has no probabilities
  HeadRows q_index, k_index;  // the indexer's

  explicit IndexerLossRows(const IndexerLossInput& input);
};

// The loss of query t, which has keys; its dq and dw are overwritten, dk_SX is added to. Serial.
double indexer_loss_of_selected_bf16(const IndexerLossRows& rows, const IndexerLossInput& input,
                                     const IndexerLossOutput& output, int64_t t,
                                     View2<float> dk_SX);

}  // namespace fathom::kernels
