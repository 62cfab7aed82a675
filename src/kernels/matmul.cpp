#include "kernels/matmul.h"

#include <algorithm>
#include <vector>

#include "base/parallel.h"
#include "kernels/amx_tile.h"
#include "kernels/bf16_dot.h"
#include "kernels/fp8.h"
#include "kernels/linear_amx.h"
#include "kernels/linear_bf16.h"
#include "kernels/linear_f32.h"
#include "kernels/matmul_amx.h"
#include "kernels/matmul_bf16.h"
#include "kernels/tile.h"

namespace fathom::kernels {
namespace {

KERNEL void widen_e4m3_row(const uint8_t* bits, int64_t count, const float* scale_inv, float* out) {
  for (int64_t k = 0; k < count; k += kQuantGroup)
    widen_e4m3(bits + k, std::min(kQuantGroup, count - k), scale_inv[k / kQuantGroup], out + k);
}

// gemm: 6 rows of A by 16 columns of B, twelve sums in registers. Sums over k start from zero for
// each block of kBlockK and are then added to C.
constexpr int64_t kGemmTileM = 6;
constexpr int64_t kGemmTileN = 16;
constexpr int64_t kBlockK = 256;
constexpr int64_t kGemmBlockM = 192;

// C's tile (rows x cols of it) is set to, or gets added, the product of a [k_size][6] and
// b [k_size][16], both packed.
KERNEL void gemm_tile(const float* a, const float* b, int64_t k_size, View2<float> c, bool add) {
  F32x8 sum[kGemmTileM][2];
  for (auto& row : sum)  // for `= {}` GCC fills the array in memory
    for (auto& lanes : row) lanes = F32x8{};
  for (int64_t k = 0; k < k_size; ++k) {
    const F32x8 b0 = load(b + k * kGemmTileN);
    const F32x8 b1 = load(b + k * kGemmTileN + kLanes);
    for (int i = 0; i < kGemmTileM; ++i) {
      const F32x8 value = broadcast(a[k * kGemmTileM + i]);
      sum[i][0] += value * b0;
      sum[i][1] += value * b1;
    }
  }
  if (c.rows == kGemmTileM && c.cols == kGemmTileN) {
    for (int i = 0; i < kGemmTileM; ++i) {
      float* row = c.data + i * c.stride;
      store(row, add ? load(row) + sum[i][0] : sum[i][0]);
      store(row + kLanes, add ? load(row + kLanes) + sum[i][1] : sum[i][1]);
    }
    return;
  }
  float whole[kGemmTileM * kGemmTileN];
  for (int i = 0; i < kGemmTileM; ++i) {
    store(whole + i * kGemmTileN, sum[i][0]);
    store(whole + i * kGemmTileN + kLanes, sum[i][1]);
  }
  for (int64_t i = 0; i < c.rows; ++i) {
    float* row = c.data + i * c.stride;
    for (int64_t j = 0; j < c.cols; ++j)
      row[j] = add ? row[j] + whole[i * kGemmTileN + j] : whole[i * kGemmTileN + j];
  }
}

// Packs `count` <= width lines (rows of A, columns of B) as [k_size][width], zero-filled, rounded
// to bf16 if asked for. May write up to kPackSlack floats beyond.
constexpr int64_t kPackSlack = 2;

template <bool kRounds>
FATHOM_INLINE F32x8 packed_lanes(F32x8 x) {
  return kRounds ? round_to_bf16(x) : x;
}

template <bool kRounds>
FATHOM_INLINE float packed_value(float x) {
  return kRounds ? round_to_bf16(broadcast(x))[0] : x;
}

// A line for each lane, side by side in memory. Whole lanes; the six-wide rows overlap and the next
// row mends what the last one spilled. The last row may end the source's memory, so it is copied
// one by one.
template <int64_t kWidth, bool kRounds>
FATHOM_INLINE void pack_adjacent(const float* data, int64_t k_stride, int64_t k_size, float* out) {
  for (int64_t k = 0; k + 1 < k_size; ++k)
    for (int64_t i = 0; i < kWidth; i += kLanes)
      store(out + k * kWidth + i, packed_lanes<kRounds>(load(data + k * k_stride + i)));
  const int64_t last = k_size - 1;
  for (int64_t i = 0; i < kWidth; ++i)
    out[last * kWidth + i] = packed_value<kRounds>(data[last * k_stride + i]);
}

// Lines that lie in memory along k are transposed; with six of them each row spills two lanes into
// the next.
template <int64_t kWidth, bool kRounds>
FATHOM_INLINE void pack_transposed(const float* data, int64_t line_stride, int64_t k_size,
                                   float* out) {
  const int64_t whole = k_size / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    for (int64_t first = 0; first < kWidth; first += kLanes) {
      F32x8 row[kLanes];
      for (int64_t i = 0; i < kLanes; ++i)
        row[i] = first + i < kWidth
                     ? packed_lanes<kRounds>(load(data + (first + i) * line_stride + k))
                     : F32x8{};
      transpose(row);
      for (int64_t i = 0; i < kLanes; ++i) store(out + (k + i) * kWidth + first, row[i]);
    }
  }
  for (int64_t k = whole; k < k_size; ++k)
    for (int64_t i = 0; i < kWidth; ++i)
      out[k * kWidth + i] = packed_value<kRounds>(data[i * line_stride + k]);
}

template <int64_t kWidth, bool kRounds>
FATHOM_INLINE void pack(const float* data, int64_t line_stride, int64_t k_stride, int64_t count,
                        int64_t k_size, float* out) {
  if (count == kWidth && line_stride == 1)
    return pack_adjacent<kWidth, kRounds>(data, k_stride, k_size, out);
  if (count == kWidth && k_stride == 1)
    return pack_transposed<kWidth, kRounds>(data, line_stride, k_size, out);
  for (int64_t i = 0; i < count; ++i) {
    const float* line = data + i * line_stride;
    for (int64_t k = 0; k < k_size; ++k)
      out[k * kWidth + i] = packed_value<kRounds>(line[k * k_stride]);
  }
  for (int64_t i = count; i < kWidth; ++i)
    for (int64_t k = 0; k < k_size; ++k) out[k * kWidth + i] = 0;
}

// A's rows, kGemmTileM of them, and B's columns, kGemmTileN.
template <int64_t kWidth>
KERNEL void pack_lines(const float* data, int64_t line_stride, int64_t k_stride, int64_t count,
                       int64_t k_size, bool round, float* out) {
  if (round)
    pack<kWidth, true>(data, line_stride, k_stride, count, k_size, out);
  else
    pack<kWidth, false>(data, line_stride, k_stride, count, k_size, out);
}

// One block of C: rows [m_begin, m_end), columns [n_begin, n_end).
struct GemmBlock {
  int64_t m_begin, m_end, n_begin, n_end;
};

struct GemmUpdate {
  bool accumulate;
  bool round;  // the operands to bf16
};

void gemm_block(const GemmBlock& block, int64_t k_total, Strided a, Strided b, View2<float> c_MN,
                const GemmUpdate& update) {
  static thread_local std::vector<float> a_pack, b_pack;
  const int64_t num_m_tiles = (block.m_end - block.m_begin + kGemmTileM - 1) / kGemmTileM;
  a_pack.resize(num_m_tiles * kGemmTileM * kBlockK + kPackSlack);
  b_pack.resize(kGemmTileN * kBlockK);
  for (int64_t k = 0; k < k_total; k += kBlockK) {
    const int64_t k_size = std::min(kBlockK, k_total - k);
    for (int64_t t = 0; t < num_m_tiles; ++t) {
      const int64_t m = block.m_begin + t * kGemmTileM;
      pack_lines<kGemmTileM>(a.data + m * a.row_stride + k * a.col_stride, a.row_stride,
                             a.col_stride, std::min(kGemmTileM, block.m_end - m), k_size,
                             update.round, a_pack.data() + t * kGemmTileM * k_size);
    }
    for (int64_t n = block.n_begin; n < block.n_end; n += kGemmTileN) {
      const int64_t cols = std::min(kGemmTileN, block.n_end - n);
      pack_lines<kGemmTileN>(b.data + k * b.row_stride + n * b.col_stride, b.col_stride,
                             b.row_stride, cols, k_size, update.round, b_pack.data());
      for (int64_t t = 0; t < num_m_tiles; ++t) {
        const int64_t m = block.m_begin + t * kGemmTileM;
        const int64_t rows = std::min(kGemmTileM, block.m_end - m);
        gemm_tile(a_pack.data() + t * kGemmTileM * k_size, b_pack.data(), k_size,
                  View2<float>(c_MN[m] + n, rows, cols, c_MN.stride), update.accumulate || k > 0);
      }
    }
  }
}

void check_gemm(const GemmShape& shape, View2<float> c_MN) {
  CHECK_EQ(c_MN.rows, shape.m);
  CHECK_EQ(c_MN.cols, shape.n);
}

// Sums over nothing. False: there is something to multiply.
bool finish_empty(const GemmShape& shape, View2<float> c_MN, bool accumulate) {
  if (shape.m == 0 || shape.n == 0) return true;
  if (shape.k > 0) return false;
  for (int64_t m = 0; m < shape.m && !accumulate; ++m) std::fill_n(c_MN[m], shape.n, 0.0f);
  return true;
}

}  // namespace

void widen_rows(const WeightView& w, int64_t begin, int64_t end, float* out) {
  const int64_t offset = (w.first_row + begin) * w.cols;
  const int64_t count = (end - begin) * w.cols;
  switch (w.format) {
    case WeightFormat::kF32:
      std::memcpy(out, static_cast<const float*>(w.data) + offset, count * sizeof(float));
      return;
    case WeightFormat::kBF16:
      from_bf16(static_cast<const uint16_t*>(w.data) + offset, count, out);
      return;
    case WeightFormat::kF16:
      for (int64_t i = 0; i < count; ++i)
        out[i] = from_f16(static_cast<const uint16_t*>(w.data)[offset + i]);
      return;
    case WeightFormat::kE4M3:
      break;
  }
  const int64_t num_blocks = (w.cols + kQuantGroup - 1) / kQuantGroup;
  const uint8_t* bits = static_cast<const uint8_t*>(w.data) + offset;
  for (int64_t row = w.first_row + begin; row < w.first_row + end; ++row) {
    widen_e4m3_row(bits, w.cols, w.scale_inv + row / kQuantGroup * num_blocks, out);
    bits += w.cols;
    out += w.cols;
  }
}

namespace {

void check_linear(View2<const float> x_MK, const WeightView& w, View2<float> y_MN) {
  CHECK_EQ(x_MK.cols, w.cols);
  CHECK_EQ(y_MN.rows, x_MK.rows);
  CHECK_EQ(y_MN.cols, w.rows);
}

bool is_stored_short(const WeightView& w) {
  return w.format == WeightFormat::kBF16 || w.format == WeightFormat::kE4M3;
}

}  // namespace

void linear(View2<const float> x_MK, const WeightView& w, View2<float> y_MN, Precision precision) {
  const LinearProduct product{x_MK, w, y_MN};
  linear_group({&product, 1}, precision);
}

void linear_group(std::span<const LinearProduct> products, Precision precision) {
  // By the kernel that takes them; only what has the same format is multiplied in one loop.
  static thread_local std::vector<LinearProduct> short_ones, others;
  short_ones.clear();
  others.clear();
  for (const LinearProduct& product : products) {
    const auto& [x_MK, w, y_MN] = product;
    check_linear(x_MK, w, y_MN);
    if (w.cols == 0) {
      for (int64_t m = 0; m < y_MN.rows; ++m) std::fill_n(y_MN[m], y_MN.cols, 0.0f);
      continue;
    }
    const bool takes_bf16 = precision == Precision::kBF16 && has_bf16_dot() && is_stored_short(w);
    (takes_bf16 ? short_ones : others).push_back(product);
  }
  if (has_amx())
    for (const auto& [x_MK, w, y_MN] : short_ones) linear_amx(x_MK, w, y_MN);
  else if (!short_ones.empty())
    linear_bf16(short_ones);
  if (!others.empty()) linear_f32(others, precision == Precision::kBF16);
}

// So many rows of x are faster one after the other than with W widened first.
constexpr int64_t kFewRows = 2;

void linear_transposed(View2<const float> x_MN, const WeightView& w, View2<float> y_MK,
                       Precision precision) {
  CHECK_EQ(x_MN.cols, w.rows);
  CHECK_EQ(y_MK.cols, w.cols);
  if (x_MN.rows <= kFewRows && is_stored_short(w) && precision == Precision::kF32 &&
      has_bf16_dot()) {
    for (int64_t m = 0; m < x_MN.rows; ++m) linear_transposed_row(x_MN[m], w, y_MK[m]);
    return;
  }
  static thread_local std::vector<float> widened;
  const float* rows = static_cast<const float*>(w.data) + w.first_row * w.cols;
  if (w.format != WeightFormat::kF32) {
    widened.resize(w.rows * w.cols);
    widen_rows(w, 0, w.rows, widened.data());
    rows = widened.data();
  }
  gemm_serial({x_MN.rows, w.cols, w.rows}, {x_MN.data, x_MN.stride, 1}, {rows, w.cols, 1}, y_MK,
              false, precision);
}

void gemm_serial(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN, bool accumulate,
                 Precision precision) {
  check_gemm(shape, c_MN);
  if (finish_empty(shape, c_MN, accumulate)) return;
  const bool is_bf16 = precision == Precision::kBF16;
  if (is_bf16 && has_amx()) return gemm_amx_serial(shape, a, b, c_MN, accumulate);
  if (is_bf16 && has_bf16_dot()) return gemm_bf16_serial(shape, a, b, c_MN, accumulate);
  for (int64_t m = 0; m < shape.m; m += kGemmBlockM)
    gemm_block({m, std::min(m + kGemmBlockM, shape.m), 0, shape.n}, shape.k, a, b, c_MN,
               {accumulate, is_bf16});
}

void gemm(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN, bool accumulate,
          Precision precision) {
  check_gemm(shape, c_MN);
  if (finish_empty(shape, c_MN, accumulate)) return;
  const bool is_bf16 = precision == Precision::kBF16;
  if (is_bf16 && has_amx()) return gemm_amx(shape, a, b, c_MN, accumulate);
  if (is_bf16 && has_bf16_dot()) return gemm_bf16(shape, a, b, c_MN, accumulate);
  const int64_t num_m_blocks = (shape.m + kGemmBlockM - 1) / kGemmBlockM;
  // Few row blocks (weight gradients): split the columns too, at the price of packing A again.
  const int64_t num_n_tiles = (shape.n + kGemmTileN - 1) / kGemmTileN;
  const int64_t wanted_items = 2 * base::num_threads();
  const int64_t num_n_blocks = std::clamp<int64_t>(wanted_items / num_m_blocks, 1, num_n_tiles);
  const int64_t tiles_per_block = (num_n_tiles + num_n_blocks - 1) / num_n_blocks;
  base::parallel_for(num_m_blocks * num_n_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t m = item / num_n_blocks * kGemmBlockM;
      const int64_t n = item % num_n_blocks * tiles_per_block * kGemmTileN;
      const int64_t n_end = std::min(n + tiles_per_block * kGemmTileN, shape.n);
      if (n < n_end)
        gemm_block({m, std::min(m + kGemmBlockM, shape.m), n, n_end}, shape.k, a, b, c_MN,
                   {accumulate, is_bf16});
    }
  });
}

namespace reference {

void linear(View2<const float> x_MK, const WeightView& w, View2<float> y_MN) {
  std::vector<float> row(w.cols);
  for (int64_t n = 0; n < w.rows; ++n) {
    widen_rows(w, n, n + 1, row.data());
    for (int64_t m = 0; m < x_MK.rows; ++m) {
      double sum = 0;
      for (int64_t k = 0; k < w.cols; ++k) sum += static_cast<double>(x_MK[m][k]) * row[k];
      y_MN[m][n] = static_cast<float>(sum);
    }
  }
}

void gemm(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN, bool accumulate) {
  for (int64_t m = 0; m < shape.m; ++m) {
    for (int64_t n = 0; n < shape.n; ++n) {
      double sum = accumulate ? c_MN[m][n] : 0;
      for (int64_t k = 0; k < shape.k; ++k)
        sum += static_cast<double>(a.data[m * a.row_stride + k * a.col_stride]) *
               b.data[k * b.row_stride + n * b.col_stride];
      c_MN[m][n] = static_cast<float>(sum);
    }
  }
}

}  // namespace reference
}  // namespace fathom::kernels
