// sparse_attention for processors with AMX: 32 queries at a time take dense products with every key
// that one of them selected, in the processor's tiles; what a query did not select has no weight.
// It is made for selections that overlap, as those of neighbouring queries do: 32 of 512 keys each
// that share 1,850 take two thirds of the time of the form without tiles forward and a quarter of
// it backward; of keys that lie anywhere in 8,192, up to two and a half times of it forward.
#pragma once

#include "kernels/sparse_attention.h"

namespace fathom::kernels {

// As in sparse_attention.h, for bf16 where has_amx(); operands and weights are rounded to bf16,
// sums, softmax and lse are f32. A query's bits depend on the 32 that it stands among, since what
// they select decides how its own sum is ordered; keys, queries and dout that are not finite spoil
// what belongs to all 32. Oracle: loops in double precision over the rounded operands, 6e-3 of the
// norm. Callers ask has_amx() first.
//
// Forward parallel over 64 queries, backward over heads: more threads than heads do not help; bits
// do not depend on the threads. Scratch: the operands in bf16; forward, of a thread, up to 400
// bytes and a head's values for each key that 32 queries selected; backward 8 bytes for each such
// key of the sequence and, of a thread, one head's dk and dv; both, of a thread, 4 bytes a key.
void sparse_attention_forward_amx(const AttentionShape& shape, const SparseAttentionForward& io);
void sparse_attention_backward_amx(const AttentionShape& shape, const SparseAttentionBackward& io);

}  // namespace fathom::kernels
