// sparse_attention for processors with bf16 dot products: products in bf16 with f32 sums, softmax
// in f32; sums of dk and dv in f32. What sparse_attention takes where precision is kBF16.
#pragma once

#include "kernels/sparse_attention.h"

namespace fathom::kernels {

// As in sparse_attention.h. Each query works on its own keys, which are read where they lie.
// Parallel over queries; bits do not depend on the threads. Scratch: all operands in bf16, and 64
// bytes a selected key for 64 queries and 8 heads.
void sparse_attention_forward_bf16(const AttentionShape& shape, const SparseAttentionForward& io);
void sparse_attention_backward_bf16(const AttentionShape& shape, const SparseAttentionBackward& io);

}  // namespace fathom::kernels
