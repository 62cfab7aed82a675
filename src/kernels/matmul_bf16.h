// The part of matmul.h that AVX512-BF16 computes. Callers ask has_bf16_dot() first.
#pragma once

#include "kernels/matmul.h"

namespace fathom::kernels {

// gemm(..., Precision::kBF16), no size zero. Both operands are packed once, as pairs along k; sums
// run over k in order, two products at a time. Scratch a calling thread: both operands in bf16.
void gemm_bf16(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN, bool accumulate);
void gemm_bf16_serial(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN,
                      bool accumulate);

}  // namespace fathom::kernels
