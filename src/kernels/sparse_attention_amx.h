// sparse_attention for processors with AMX: 32 queries at a time take dense products with every key
// that one of them selected, in the processor's tiles; what a query did not select has no weight.
// The tiles are so fast that this costs a tenth of reading each query's own keys (LOG.md).
#pragma once

#include "kernels/sparse_attention.h"

namespace fathom::kernels {

// As in sparse_attention.h, for bf16 where has_amx(); operands and weights are rounded to bf16,
// sums, softmax and lse are f32. A query's bits depend on the 32 that it stands among, since what
// they select decides how its own sum is ordered; keys that are not finite spoil all 32. Oracle:
// the f32 form, within the rounding of the operands (1% of the norm).
//
// Forward parallel over 64 queries, backward over heads: more threads than heads do not help; bits
// do not depend on the threads. Scratch: the operands in bf16; forward, of a thread, 512 bytes and
// a head's values for each key that 32 queries selected; backward 8 bytes for each such key of the
// sequence and, of a thread, one head's dk and dv.
void sparse_attention_forward_amx(const AttentionShape& shape, const SparseAttentionForward& io);
void sparse_attention_backward_amx(const AttentionShape& shape, const SparseAttentionBackward& io);

}  // namespace fathom::kernels
