// The selected form of indexer_loss for processors with bf16 dot products: products in bf16 with
// f32 sums, everything else in f32. What indexer_loss takes where precision is kBF16.
#pragma once

#include "kernels/indexer_loss.h"

namespace fathom::kernels {

// As in indexer_loss.h, for an input with selected keys. Parallel over eight queries and, for dk,
// over 32 columns. Scratch: the operands in bf16, and of 64 queries 16 bytes a head and key that
// one of eight selected. dk takes what eight queries add to a key at once: its rounding depends on
// how queries fall into eights.
void indexer_loss_of_selected_bf16(const IndexerLossInput& input, IndexerLossOutput& output);

}  // namespace fathom::kernels
