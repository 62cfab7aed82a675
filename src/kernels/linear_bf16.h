// The part of matmul.h's linear that AVX512-BF16 computes. Callers ask has_bf16_dot() first.
#pragma once

#include "kernels/matmul.h"

namespace fathom::kernels {

// linear_group(..., Precision::kBF16) for W in BF16 or E4M3. A sum takes eight k at a time, in
// order, each of their four pairs in a lane of its own; the lanes are added at the end. For E4M3
// the sums of each block of 128 are taken times its factor. The order does not depend on how many
// rows of x there are. Scratch: x in bf16, once where products follow each other that have the
// same; a block of W in bf16 and 66 rows' sums on the stack.
void linear_bf16(std::span<const LinearProduct> products);

// linear_transposed for one row of x and W in BF16 or E4M3, in f32: the same bits, without a
// widened copy of W. Serial; scratch: K sums a thread.
void linear_transposed_row(const float* x_N, const WeightView& w_NK, float* y_K);

}  // namespace fathom::kernels
