// The part of matmul.h's linear that every processor computes: f32 products of x with W in any
// format.
#pragma once

#include <span>

#include "kernels/matmul.h"

namespace fathom::kernels {

// linear_group, of x as it is or rounded to bf16; no W without columns. A sum takes eight k at a
// time, in order, each in a lane of its own; the lanes are added at the end. E4M3 takes the columns
// of each 32 in another order, and its factors go to x. The order does not depend on how many rows
// of x there are. Scratch: a thread a panel of W or, for E4M3, its sums of 64 rows; x once more
// where it is rounded and for E4M3, once where products follow each other that have the same.
void linear_f32(std::span<const LinearProduct> products, bool round);

}  // namespace fathom::kernels
