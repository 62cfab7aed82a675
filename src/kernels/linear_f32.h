// The part of matmul.h's linear that every processor computes: f32 products of x with W in any
// format.
#pragma once

#include "kernels/matmul.h"

namespace fathom::kernels {

// linear(..., Precision::kF32). A sum takes eight k at a time, in order, each in a lane of its own;
// the lanes are added at the end. E4M3 takes the columns of each 32 in another order, and its
// factors go to x. The order does not depend on how many rows of x there are. Scratch: a thread a
// panel of W or, for E4M3, its sums of 64 rows; for E4M3 x once more.
void linear_f32(View2<const float> x_MK, const WeightView& w_NK, View2<float> y_MN);

}  // namespace fathom::kernels
