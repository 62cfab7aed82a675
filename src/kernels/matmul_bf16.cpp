#include "kernels/matmul_bf16.h"

#include <algorithm>

#include "kernels/bf16_tile.h"
#include "kernels/gemm_ranges.h"
#include "kernels/tile.h"

namespace fathom::kernels {

#if FATHOM_HAS_BF16_KERNELS

namespace {

// 6 rows of A by 4 vectors of B keep 24 sums, 4 operands and 1 input in 32 registers.
constexpr int64_t kRows = 6;
constexpr int64_t kVector = 16;
constexpr int64_t kPanel = 4 * kVector;
// Pairs of k whose part of a panel of B (32 KiB) stays in an L1 cache, and rows of A that share it.
constexpr int64_t kBlockPairs = 128;
constexpr int64_t kBlockM = 24 * kRows;

// Pairs of one operand: (line, pair p of k) lies at pairs[line * line_stride + p * pair_stride].
struct Pairs {
  const uint32_t* pairs;
  int64_t line_stride;
  int64_t pair_stride;
};

// Sixteen f32 of a line that ends after `count`; the rest are zero.
BF16_INLINE __m512 load_some(const float* p, int64_t count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), p);
}

// A line whose k are contiguous: out[p] = (x[2p], x[2p + 1]), zeros behind k_size.
BF16_KERNEL void pack_line(const float* x, int64_t k_size, uint32_t* out) {
  int64_t k = 0;
  for (; k + 2 * kVector <= k_size; k += 2 * kVector)
    _mm512_storeu_si512(out + k / 2,
                        round_to_pairs(_mm512_loadu_ps(x + k), _mm512_loadu_ps(x + k + kVector)));
  if (k == k_size) return;
  const __m512i last = round_to_pairs(load_some(x + k, k_size - k),
                                      load_some(x + k + kVector, k_size - k - kVector));
  const auto pairs = static_cast<uint32_t>((k_size - k + 1) / 2);
  _mm512_mask_storeu_epi32(out + k / 2, static_cast<__mmask16>((1u << pairs) - 1), last);
}

// Lines that are contiguous (k strides over memory): out[p * out_stride + line] for `count` lines.
BF16_KERNEL void pack_across(const float* x, int64_t k_stride, int64_t k_size, int64_t count,
                             uint32_t* out, int64_t out_stride) {
  for (int64_t p = 0; 2 * p < k_size; ++p) {
    const float* const even = x + 2 * p * k_stride;
    const bool has_odd = 2 * p + 1 < k_size;
    for (int64_t i = 0; i < count; i += kVector) {
      const __m512 low = load_some(even + i, count - i);
      const __m512 high = has_odd ? load_some(even + k_stride + i, count - i) : _mm512_setzero_ps();
      const auto lanes = static_cast<uint32_t>(std::min(kVector, count - i));
      _mm512_mask_storeu_epi32(out + p * out_stride + i, static_cast<__mmask16>((1u << lanes) - 1),
                               round_to_pairs_of_rows(low, high));
    }
  }
}

// Lines whose k are contiguous, sixteen at a time turned into pack_across's layout.
BF16_KERNEL void pack_turned(const float* x, int64_t line_stride, int64_t k_size, int64_t count,
                             uint32_t* out, int64_t out_stride) {
  for (int64_t begin = 0; begin < count; begin += kVector) {
    const auto lanes = static_cast<uint32_t>(std::min(kVector, count - begin));
    const auto mask = static_cast<__mmask16>((1u << lanes) - 1);
    for (int64_t k = 0; k < k_size; k += 2 * kVector) {
      __m512i block[kVector];
      for (int64_t i = 0; i < kVector; ++i) {
        const float* const line = x + (begin + std::min<int64_t>(i, lanes - 1)) * line_stride + k;
        block[i] = round_to_pairs(load_some(line, k_size - k),
                                  load_some(line + kVector, k_size - k - kVector));
      }
      transpose_lanes(block);
      for (int64_t p = 0; p < std::min(kVector, ceil_div(k_size - k, 2)); ++p)
        _mm512_mask_storeu_epi32(out + (k / 2 + p) * out_stride + begin, mask, block[p]);
    }
  }
}

// C's tile (+)= A's rows times B's panel over `num_pairs` pairs of k.
template <int kTileRows, int kVectors>
BF16_KERNEL void multiply(Pairs a, const uint32_t* b, int64_t b_stride, int64_t num_pairs,
                          View2<float> c, bool accumulate) {
  const auto mask = static_cast<__mmask16>((1u << (c.cols - (kVectors - 1) * kVector)) - 1);
  __m512 sum[kTileRows][kVectors];
#pragma GCC unroll 6
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[i][v] = accumulate ? _mm512_maskz_loadu_ps(v + 1 == kVectors ? mask : 0xffff,
                                                     c.data + i * c.stride + v * kVector)
                             : _mm512_setzero_ps();
  for (int64_t p = 0; p < num_pairs; ++p) {
    __m512i columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      columns[v] = _mm512_loadu_si512(b + p * b_stride + v * kVector);
#pragma GCC unroll 6
    for (int i = 0; i < kTileRows; ++i) {
      const __m512i row =
          _mm512_set1_epi32(static_cast<int>(a.pairs[i * a.line_stride + p * a.pair_stride]));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[i][v] = dot_pairs(sum[i][v], row, columns[v]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      _mm512_mask_storeu_ps(c.data + i * c.stride + v * kVector, v + 1 == kVectors ? mask : 0xffff,
                            sum[i][v]);
}

using Multiply = void (*)(Pairs, const uint32_t*, int64_t, int64_t, View2<float>, bool);
template <int kTileRows>
constexpr Multiply kMultiply[] = {multiply<kTileRows, 1>, multiply<kTileRows, 2>,
                                  multiply<kTileRows, 3>, multiply<kTileRows, 4>};
constexpr const Multiply* kTiles[] = {kMultiply<1>, kMultiply<2>, kMultiply<3>,
                                      kMultiply<4>, kMultiply<5>, kMultiply<6>};

// An operand's lines (rows of A, columns of B) as f32.
struct Operand {
  const float* data;
  int64_t num_lines;
  int64_t line_stride;
  int64_t k_stride;
  int64_t k_size;

  int64_t num_pairs() const { return ceil_div(k_size, 2); }
  const float* line(int64_t i) const { return data + i * line_stride; }
};

// B by panels of 64 columns, each [pairs][64] (the last may be narrower, in whole vectors).
struct PackedB {
  const uint32_t* data;
  int64_t num_cols;
  int64_t num_pairs;

  static int64_t width(int64_t num_cols, int64_t panel) {
    return std::min(kPanel, round_up(num_cols, kVector) - panel * kPanel);
  }
  int64_t width(int64_t panel) const { return width(num_cols, panel); }
  const uint32_t* panel(int64_t i) const { return data + i * kPanel * num_pairs; }
};

void pack_panel(const Operand& b, int64_t panel, uint32_t* out) {
  const int64_t begin = panel * kPanel, count = std::min(kPanel, b.num_lines - begin);
  const int64_t stride = PackedB::width(b.num_lines, panel);
  if (b.line_stride == 1)
    pack_across(b.line(begin), b.k_stride, b.k_size, count, out, stride);
  else
    pack_turned(b.line(begin), b.line_stride, b.k_size, count, out, stride);
}

// Lines [begin, end) of A, in the layout that A's own suggests.
void pack_lines(const Operand& a, int64_t begin, int64_t end, uint32_t* out) {
  if (a.k_stride != 1) {
    pack_across(a.line(begin), a.k_stride, a.k_size, end - begin, out + begin, a.num_lines);
    return;
  }
  for (int64_t i = begin; i < end; ++i) pack_line(a.line(i), a.k_size, out + i * a.num_pairs());
}

Pairs packed_lines(const Operand& a, const uint32_t* packed) {
  return a.k_stride != 1 ? Pairs{packed, 1, a.num_lines} : Pairs{packed, a.num_pairs(), 1};
}

// Rows [m_begin, m_end) and one panel's columns of C.
void multiply_panel(Pairs a, const PackedB& b, int64_t panel, View2<float> c_MN, int64_t m_begin,
                    int64_t m_end, bool accumulate) {
  const int64_t cols = std::min(kPanel, b.num_cols - panel * kPanel);
  const int64_t stride = b.width(panel);
  for (int64_t p = 0; p < b.num_pairs; p += kBlockPairs) {
    const int64_t count = std::min(kBlockPairs, b.num_pairs - p);
    for (int64_t m = m_begin; m < m_end; m += kRows) {
      const int64_t rows = std::min(kRows, m_end - m);
      const Pairs lines{a.pairs + m * a.line_stride + p * a.pair_stride, a.line_stride,
                        a.pair_stride};
      kTiles[rows - 1][stride / kVector - 1](
          lines, b.panel(panel) + p * stride, stride, count,
          View2<float>(c_MN[m] + panel * kPanel, rows, cols, c_MN.stride), accumulate || p > 0);
    }
  }
}

// Multiplications: a tenth of a millisecond.
constexpr int64_t kLeastWork = 4 << 20;

struct Scratch {
  LineBuffer a, b;
};

// for_each_range: ParallelRanges or SerialRanges.
template <typename ForEachRange>
void multiply_all(const GemmShape& shape, Strided a_MK, Strided b_KN, View2<float> c_MN,
                  bool accumulate, const ForEachRange& for_each_range) {
  static thread_local Scratch scratch;
  const Operand a{a_MK.data, shape.m, a_MK.row_stride, a_MK.col_stride, shape.k};
  const Operand b{b_KN.data, shape.n, b_KN.col_stride, b_KN.row_stride, shape.k};
  const int64_t pairs = a.num_pairs(), num_panels = ceil_div(shape.n, kPanel);
  uint32_t* const packed_a = scratch.a.reserve<uint32_t>(shape.m * pairs);
  uint32_t* const packed_b = scratch.b.reserve<uint32_t>(round_up(shape.n, kVector) * pairs);
  const int64_t num_blocks = ceil_div(shape.m, kBlockM);
  for_each_range(num_blocks + num_panels, kBlockM * shape.k * 4, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item)
      if (item < num_blocks)
        pack_lines(a, item * kBlockM, std::min((item + 1) * kBlockM, shape.m), packed_a);
      else
        pack_panel(b, item - num_blocks, packed_b + (item - num_blocks) * kPanel * pairs);
  });
  const PackedB packed{packed_b, shape.n, pairs};
  const Pairs lines = packed_lines(a, packed_a);
  const int64_t work = std::min(shape.m, kBlockM) * std::min(shape.n, kPanel) * shape.k;
  for_each_range(num_blocks * num_panels, work, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t m = item / num_panels * kBlockM;
      multiply_panel(lines, packed, item % num_panels, c_MN, m, std::min(m + kBlockM, shape.m),
                     accumulate);
    }
  });
}

}  // namespace

void gemm_bf16(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN, bool accumulate) {
  multiply_all(shape, a, b, c_MN, accumulate, ParallelRanges{kLeastWork});
}

void gemm_bf16_serial(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN,
                      bool accumulate) {
  multiply_all(shape, a, b, c_MN, accumulate, SerialRanges{});
}

#else

void gemm_bf16(const GemmShape&, Strided, Strided, View2<float>, bool) {
  CHECK(false, "no AVX512-BF16: ask has_bf16_dot() first");
}
void gemm_bf16_serial(const GemmShape&, Strided, Strided, View2<float>, bool) {
  CHECK(false, "no AVX512-BF16: ask has_bf16_dot() first");
}

#endif

}  // namespace fathom::kernels
