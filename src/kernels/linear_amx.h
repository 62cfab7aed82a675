// The part of matmul.h's linear that AMX computes. Callers ask has_amx() first.
#pragma once

#include "kernels/matmul.h"

namespace fathom::kernels {

// linear(..., Precision::kBF16) for W in BF16 or E4M3, sixteen rows of W by sixteen of x at a time.
// A sum takes 32 k at a time in amx_tile.h's order (of e4m3, of each 64 k the numbers 0 to 7, 16 to
// 23, ... first). E4M3: where all factors of a row of W are powers of two from 2^-64 to 2^64, as
// ue8m0's are, they go into its bf16, exactly, and the sum runs on over all k (products below
// 2^-126 count as zero, the factor included); else the sum of each block of 128 is taken times its
// factor and added to those before. One row of x goes the same way as many, so its bits do not
// depend on how many there are. W in BF16 is read where it lies. W has columns. Scratch: x in bf16,
// of the calling thread; sums of 64 rows of x by all of W's, where k is longer than 8,192; a
// thread's two panels of W, for those that are cut short; blocks on the stack.
void linear_amx(View2<const float> x_MK, const WeightView& w_NK, View2<float> y_MN);

}  // namespace fathom::kernels
