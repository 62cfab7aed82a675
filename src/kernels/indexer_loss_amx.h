// The selected form of indexer_loss for processors with AMX, as kernels/sparse_attention_amx: 32
// queries take products with every key that one of them selected.
#pragma once

#include "kernels/indexer_loss.h"

namespace fathom::kernels {

// As in indexer_loss.h, for an input with selected keys and their probabilities, where has_amx().
// Products in bf16 with f32 sums, everything else in f32. Parallel over 32 queries and, for dk,
// over ranges of keys. Scratch: the indexer's operands in bf16, for 64 queries a row of dk a key,
// and of a thread 264 bytes a key of 32 queries.
void indexer_loss_of_selected_amx(const IndexerLossInput& input, IndexerLossOutput& output);

}  // namespace fathom::kernels
