// Matrix products. Two kernels, because their operands lie differently:
//   linear: y = x W^T with W stored by output row, in any weight format. Serves every forward pass.
//   gemm:   C = A B with strided A and B, f32. Serves the backward passes and attention's tiles.
#pragma once

#include <cstdint>
#include <span>

#include "base/array_view.h"

namespace fathom::kernels {

enum class WeightFormat { kF32, kBF16, kF16, kE4M3 };

// Rows [first_row, first_row + rows) of a matrix as stored, row-major with `cols` columns; the view
// itself is W [N, K] with N = rows. e4m3 comes with one f32 factor for each 128x128 block of the
// whole matrix, scale_inv [ceil(all rows/128), ceil(K/128)].
struct WeightView {
  WeightFormat format = WeightFormat::kF32;
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  const float* scale_inv = nullptr;
  int64_t first_row = 0;

  WeightView slice_rows(int64_t begin, int64_t end) const {
    CHECK(0 <= begin && begin <= end && end <= rows, "rows {}..{} of {}", begin, end, rows);
    return {format, data, end - begin, cols, scale_inv, first_row + begin};
  }
};

// What becomes of the operands first. kBF16: rounded to bf16, to nearest even; their products are
// exact in f32, and sums are f32.
enum class Precision { kF32, kBF16 };

// y[m,n] = sum_k x[m,k] * W[n,k], f32 accumulation. CHECKs shapes.
// Each y[m,n] is one sum over k in a fixed order (partial sums, then a tree): its bits
// depend on x's row and W's row only, not on M, on its place in the batch or on the threads.
// kBF16 rounds x, not W: a W in BF16 or E4M3 (times its factors, in f32) is taken as it is, and one
// in another format is multiplied in f32. E4M3's NaN is one with AVX512-BF16; f32 kernels read 480,
// and of E4M3 they take |x| times a factor from 2^-60 to 2^62.
// A processor with AMX has its own bits (amx_tile.h), one with AVX512-BF16 alone others.
// Scratch: one panel of W a thread; kBF16: x in bf16, with AMX also what linear_amx.h says. Oracle
// reference::linear (of the rounded x), relative tolerance 1e-5.
void linear(View2<const float> x_MK, const WeightView& w_NK, View2<float> y_MN,
            Precision precision = Precision::kF32);

// One product of several.
struct LinearProduct {
  View2<const float> x_MK;
  WeightView w_NK;
  View2<float> y_MN;
};

// Whether both have the same x.
inline bool share_input(const LinearProduct& a, const LinearProduct& b) {
  const View2<const float>&x = a.x_MK, &y = b.x_MK;
  return x.data == y.data && x.rows == y.rows && x.cols == y.cols && x.stride == y.stride;
}

// linear of each, the same bits: products too small to be shared out, as those of experts with few
// tokens, are shared out together. Some x may be the same; no y may be another's x. The work goes
// to the threads in one loop, but with AMX product by product. Scratch as linear's, of all x.
void linear_group(std::span<const LinearProduct> products, Precision precision = Precision::kF32);

// An f32 matrix read through strides, so that a transpose costs nothing to say.
struct Strided {
  const float* data = nullptr;
  int64_t row_stride = 0;
  int64_t col_stride = 0;
};

struct GemmShape {
  int64_t m = 0, n = 0, k = 0;
};

// C[m,n] (+)= sum_k A[m,k] * B[k,n]; C is row-major. Sums run over k in order: kF32 in blocks of
// 256; kBF16 two products at a time where the processor has AVX512-BF16, 32 where it has AMX, as
// kF32 where it has neither. A row of A and of B must each be contiguous in one direction (a stride
// of 1). gemm runs in parallel over blocks of C, gemm_serial on the calling thread; same bits, and
// a row's depend on A's row and B alone. Scratch a thread: blocks of the operands; kBF16: both, in
// bf16. Oracle reference::gemm of the (rounded) operands, relative tolerance 1e-5.
void gemm(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN, bool accumulate,
          Precision precision = Precision::kF32);
void gemm_serial(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN, bool accumulate,
                 Precision precision = Precision::kF32);

// y = x W for W [N, K] in any format, x [M, N]: the absorbed products of MQA. W is widened by
// panels; kBF16 rounds both. Row m's bits depend on x's row m and W alone.
void linear_transposed(View2<const float> x_MN, const WeightView& w_NK, View2<float> y_MK,
                       Precision precision = Precision::kF32);

// Rows [begin, end) of W as f32, scales applied. out has (end - begin) * cols elements.
void widen_rows(const WeightView& w, int64_t begin, int64_t end, float* out);

namespace reference {
void linear(View2<const float> x_MK, const WeightView& w_NK, View2<float> y_MN);
void gemm(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN, bool accumulate);
}  // namespace reference

}  // namespace fathom::kernels
