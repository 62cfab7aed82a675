// The part of matmul.h that AMX computes. Callers ask has_amx() first.
#pragma once

#include "kernels/matmul.h"

namespace fathom::kernels {

// gemm(..., Precision::kBF16), no size zero. Both operands are packed once, by tiles of 16 lines
// and 32 k; sums run over k in amx_tile.h's order. Scratch a calling thread: both operands in bf16.
void gemm_amx(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN, bool accumulate);
void gemm_amx_serial(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN,
                     bool accumulate);

}  // namespace fathom::kernels
