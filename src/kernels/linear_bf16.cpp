#include "kernels/linear_bf16.h"

#include <algorithm>
#include <vector>

#include "base/parallel.h"
#include "kernels/bf16_dot.h"
#include "kernels/fp8.h"

namespace fathom::kernels {

#if FATHOM_HAS_BF16_KERNELS

namespace {

// A register of W holds four consecutive k ("a quad") of eight rows: lanes 2i and 2i + 1 are row
// i's two pairs. x's quad is broadcast to all; in the end each row's two lanes are added.
constexpr int64_t kQuad = 4;
constexpr int64_t kVectorRows = 8;
constexpr int64_t kVectors = 4;
constexpr int64_t kPanelRows = kVectors * kVectorRows;  // of W; divides a block of 128
constexpr int64_t kTileRows = 6;                        // of x: 24 sums in registers
constexpr int64_t kBlockQuads = kQuantGroup / kQuad;    // that share a factor
constexpr int64_t kItemRows = 66;                       // of x, whose sums and block stay in L1
constexpr int64_t kPrefetch = 512;                      // bytes ahead in each row of W

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// x in bf16, each row zero behind its end up to whole blocks of 128.
struct RoundedRows {
  const uint16_t* data;
  int64_t stride;
  const uint16_t* operator[](int64_t m) const { return data + m * stride; }
};

BF16_KERNEL void round_row(const float* x, int64_t count, int64_t stride, uint16_t* out) {
  for (int64_t k = 0; k < stride; k += 32) {
    const auto left = [&](int64_t at) {
      return static_cast<__mmask16>(count - at >= 16 ? 0xffff
                                    : count > at     ? (1 << (count - at)) - 1
                                                     : 0);
    };
    _mm512_storeu_si512(out + k, round_to_pairs(_mm512_maskz_loadu_ps(left(k), x + k),
                                                _mm512_maskz_loadu_ps(left(k + 16), x + k + 16)));
  }
}

// Up to 32 rows of W as stored.
struct BF16Rows {
  static constexpr bool kIsScaled = false;
  const uint16_t* data;
  int64_t num_rows, cols;
};
struct E4M3Rows {
  static constexpr bool kIsScaled = true;
  const uint8_t* data;
  int64_t num_rows, cols;
};

// Sixty-four bytes of a row from byte `at` on, zeros behind its end; the last row stands in for
// those that are missing.
BF16_INLINE __m512i load_bytes(const void* data, int64_t num_rows, int64_t row_bytes, int64_t row,
                               int64_t at) {
  const char* const p =
      static_cast<const char*>(data) + std::min(row, num_rows - 1) * row_bytes + at;
  const int64_t left = row_bytes - at;
  _mm_prefetch(p + kPrefetch, _MM_HINT_T0);
  if (left >= 64) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi8(left <= 0 ? 0 : (__mmask64{1} << left) - 1, p);
}

// Eight rows of eight 64-bit lanes become columns.
BF16_INLINE void transpose_quads(__m512i (&row)[8]) {
  __m512i pair[8], half[8];
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm512_unpacklo_epi64(row[i], row[i + 1]);
    pair[i + 1] = _mm512_unpackhi_epi64(row[i], row[i + 1]);
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      half[i + 4 * j] = _mm512_shuffle_i64x2(pair[4 * j + i], pair[4 * j + i + 2], 0x88);
      half[i + 2 + 4 * j] = _mm512_shuffle_i64x2(pair[4 * j + i], pair[4 * j + i + 2], 0xdd);
    }
  for (int i = 0; i < 4; ++i) {
    row[2 * (i & 2) / 2 + (i & 1)] = _mm512_shuffle_i64x2(half[i], half[i + 4], 0x88);
    row[4 + 2 * (i & 2) / 2 + (i & 1)] = _mm512_shuffle_i64x2(half[i], half[i + 4], 0xdd);
  }
}

// The panel's columns [k, k + 128) as out [32 quads][4 vectors][32 bf16].
BF16_KERNEL void pack_block(const BF16Rows& w, int64_t k, uint16_t* out) {
  for (int64_t v = 0; v < kVectors; ++v)
    for (int64_t q = 0; q < kBlockQuads; q += 8) {
      __m512i block[8];
      for (int64_t i = 0; i < 8; ++i)
        block[i] =
            load_bytes(w.data, w.num_rows, 2 * w.cols, v * kVectorRows + i, 2 * (k + q * kQuad));
      transpose_quads(block);
      for (int64_t i = 0; i < 8; ++i)
        _mm512_storeu_si512(out + ((q + i) * kVectors + v) * 32, block[i]);
    }
}
BF16_KERNEL void pack_block(const E4M3Rows& w, int64_t k, uint16_t* out) {
  // Widening takes a part's first two quads to one register and its last two to another: rows in
  // this order come out eight and eight.
  constexpr int64_t kOrder[16] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
  const E4M3Widener table = e4m3_widener();
  for (int64_t v = 0; v < kVectors; v += 2)
    for (int64_t q = 0; q < kBlockQuads; q += 16) {
      __m512i block[16];
      for (int64_t i = 0; i < 16; ++i)
        block[i] =
            load_bytes(w.data, w.num_rows, w.cols, v * kVectorRows + kOrder[i], k + q * kQuad);
      transpose_lanes(block);
      for (int64_t i = 0; i < 16; ++i) {
        __m512i wide[2];
        widen_e4m3_parts(table, block[i], wide);
        _mm512_storeu_si512(out + ((q + i) * kVectors + v) * 32, wide[0]);
        _mm512_storeu_si512(out + ((q + i) * kVectors + v + 1) * 32, wide[1]);
      }
    }
}

// sums [kRows][4][16] go on over a block: with a factor, the block's own sums times it are added.
template <int kRows, bool kIsScaled>
BF16_KERNEL void add_block(const RoundedRows& x, const uint16_t* w, float factor, float* sums) {
  __m512 sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v)
      sum[i][v] = kIsScaled ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + (i * kVectors + v) * 16);
  for (int64_t q = 0; q < kBlockQuads; ++q) {
    __m512i weights[kVectors];
    for (int v = 0; v < kVectors; ++v) weights[v] = _mm512_loadu_si512(w + (q * kVectors + v) * 32);
    for (int i = 0; i < kRows; ++i) {
      int64_t quad;
      std::memcpy(&quad, x[i] + q * kQuad, sizeof quad);
      const __m512i input = _mm512_set1_epi64(quad);
      for (int v = 0; v < kVectors; ++v) sum[i][v] = dot_pairs(sum[i][v], input, weights[v]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) {
      float* const to = sums + (i * kVectors + v) * 16;
      _mm512_storeu_ps(
          to, kIsScaled ? _mm512_fmadd_ps(sum[i][v], _mm512_set1_ps(factor), _mm512_loadu_ps(to))
                        : sum[i][v]);
    }
}

using AddBlock = void (*)(const RoundedRows&, const uint16_t*, float, float*);
template <bool kIsScaled>
constexpr AddBlock kAddBlock[] = {add_block<1, kIsScaled>, add_block<2, kIsScaled>,
                                  add_block<3, kIsScaled>, add_block<4, kIsScaled>,
                                  add_block<5, kIsScaled>, add_block<6, kIsScaled>};

// y[m][0..num_cols) from sums [4][16]: each row of W's two lanes.
BF16_KERNEL void add_lanes(const float* sums, int64_t num_cols, float* y) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  for (int64_t n = 0; n < num_cols; n += 16) {
    const __m512 a = _mm512_loadu_ps(sums + 2 * n), b = _mm512_loadu_ps(sums + 2 * n + 16);
    const auto mask =
        static_cast<__mmask16>(num_cols - n >= 16 ? 0xffff : (1 << (num_cols - n)) - 1);
    _mm512_mask_storeu_ps(y + n, mask,
                          _mm512_permutex2var_ps(a, even, b) + _mm512_permutex2var_ps(a, odd, b));
  }
}

// One panel of W for rows of x. factors: of the blocks of columns.
template <typename Rows>
void multiply_panel(const RoundedRows& x, const Rows& w, const float* factors, View2<float> y) {
  alignas(64) uint16_t block[kPanelRows * kQuantGroup];
  alignas(64) float sums[kItemRows * kPanelRows * 2];
  std::fill_n(sums, y.rows * kPanelRows * 2, 0.0f);
  for (int64_t k = 0; k < w.cols; k += kQuantGroup) {
    pack_block(w, k, block);
    for (int64_t m = 0; m < y.rows; m += kTileRows)
      kAddBlock<Rows::kIsScaled>[std::min(kTileRows, y.rows - m) - 1](
          {x[m] + k, x.stride}, block, Rows::kIsScaled ? factors[k / kQuantGroup] : 1.0f,
          sums + m * kPanelRows * 2);
  }
  for (int64_t m = 0; m < y.rows; ++m) add_lanes(sums + m * kPanelRows * 2, y.cols, y[m]);
}

}  // namespace

void linear_bf16(View2<const float> x_MK, const WeightView& w, View2<float> y_MN) {
  static thread_local std::vector<uint16_t> buffer;
  const int64_t stride = ceil_div(w.cols, kQuantGroup) * kQuantGroup;
  buffer.resize(x_MK.rows * stride);
  uint16_t* const rounded = buffer.data();
  const auto grain = [](int64_t work) {
    return std::max<int64_t>(1, (4 << 20) / std::max<int64_t>(work, 1));
  };
  base::parallel_for(x_MK.rows, grain(32 * w.cols), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) round_row(x_MK[m], w.cols, stride, rounded + m * stride);
  });
  // Panels are cut at multiples of 32 of the whole matrix, whose rows share their factors.
  const int64_t num_blocks = stride / kQuantGroup, first = w.first_row / kPanelRows;
  const int64_t num_panels = ceil_div(w.first_row + w.rows, kPanelRows) - first;
  const int64_t num_m_blocks = ceil_div(x_MK.rows, kItemRows);
  const int64_t work = std::min(x_MK.rows, kItemRows) * kPanelRows * w.cols;
  base::parallel_for(num_panels * num_m_blocks, grain(work), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t m = at / num_panels * kItemRows, panel = first + at % num_panels;
      const int64_t row = std::max(panel * kPanelRows, w.first_row);
      const int64_t num_w = std::min((panel + 1) * kPanelRows, w.first_row + w.rows) - row;
      const RoundedRows x{rounded + m * stride, stride};
      const View2<float> y(y_MN[m] + (row - w.first_row), std::min(kItemRows, x_MK.rows - m), num_w,
                           y_MN.stride);
      if (w.format == WeightFormat::kBF16)
        multiply_panel(x,
                       BF16Rows{static_cast<const uint16_t*>(w.data) + row * w.cols, num_w, w.cols},
                       nullptr, y);
      else
        multiply_panel(x,
                       E4M3Rows{static_cast<const uint8_t*>(w.data) + row * w.cols, num_w, w.cols},
                       w.scale_inv + row / kQuantGroup * num_blocks, y);
    }
  });
}

#else

void linear_bf16(View2<const float>, const WeightView&, View2<float>) {
  CHECK(false, "no AVX512-BF16: ask has_bf16_dot() first");
}

#endif

}  // namespace fathom::kernels
