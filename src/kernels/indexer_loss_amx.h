// The selected form of indexer_loss for processors with AMX, as kernels/sparse_attention_amx: 32
// queries take products with every key that one of them selected.
#pragma once

#include "kernels/indexer_loss.h"

namespace fathom::kernels {

// As in indexer_loss.h, for an input with selected keys and their probabilities, where has_amx().
// Products in bf16 with f32 sums, everything else in f32. A query's bits depend on the 32 that it
// stands among, and what is not finite spoils all of them. Parallel over 32 of 256 queries at a
// time and, for dk, over ranges of keys. Scratch: the indexer's operands in bf16 and, for 256
// queries, a row of dk for each key that 32 of them selected; of a thread 256 bytes and a row of
// bf16 for each of these and the operands of 32 queries.
void indexer_loss_of_selected_amx(const IndexerLossInput& input, IndexerLossOutput& output);

}  // namespace fathom::kernels
