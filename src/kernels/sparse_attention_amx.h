// sparse_attention for processors with AMX: 32 queries at a time take dense products with every key
// that one of them selected, in the processor's tiles; what a query did not select has no weight.
// The tiles are so fast that this costs a tenth of reading each query's own keys (LOG.md).
#pragma once

#include "kernels/sparse_attention.h"

namespace fathom::kernels {

// As in sparse_attention.h, for bf16 where has_amx(); operands and weights are rounded to bf16,
// sums, softmax and lse are f32. A query's bits depend on the 32 that it stands among, since what
// they select decides how its own sum is ordered; keys that are not finite spoil all 32. Scratch
// of a thread: 128 to 256 bytes a key of 32 queries.
//
// Forward parallel over 64 queries, backward over heads.
void sparse_attention_forward_amx(const AttentionShape& shape, const SparseAttentionForward& io);
void sparse_attention_backward_amx(const AttentionShape& shape, const SparseAttentionBackward& io);

}  // namespace fathom::kernels
