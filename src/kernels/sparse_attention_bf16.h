// sparse_attention for processors with bf16 dot products: products in bf16 with f32 sums, softmax
// in f32; sums of dk and dv in f32. What sparse_attention takes where precision is kBF16.
#pragma once

#include "kernels/sparse_attention.h"

namespace fathom::kernels {

// As in sparse_attention.h. Each query works on its own keys, which are read where they lie, one
// head at a time for 64 queries; dk and dv take what eight queries add to a key at once: their
// rounding depends on how queries fall into eights. Forward parallel over blocks of 64 queries,
// backward over heads: more threads than heads do not help. Bits do not depend on the threads.
// Scratch: all operands in bf16, and a thread 32 bytes for each key that one of eight queries
// selected, for 64 queries. Oracle: the f32 form, whose results these are within the rounding of
// their operands (1% of the norm).
void sparse_attention_forward_bf16(const AttentionShape& shape, const SparseAttentionForward& io);
void sparse_attention_backward_bf16(const AttentionShape& shape, const SparseAttentionBackward& io);

}  // namespace fathom::kernels
