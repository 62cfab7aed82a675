// f32 operands packed into AMX's tiles, and products of what was packed.
#pragma once

#include <algorithm>

#include "base/array_view.h"
#include "kernels/amx_tile.h"
#include "kernels/tile.h"

namespace fathom::kernels {

#if FATHOM_HAS_AMX_KERNELS

inline constexpr int64_t kTileRowBytes = kAmxPairs * static_cast<int64_t>(sizeof(uint32_t));

// An operand's lines (rows of A, columns of B) as f32. Contiguous along the lines or along k.
struct TileOperand {
  const float* data;
  int64_t num_lines;
  int64_t line_stride;
  int64_t k_stride;
  int64_t k_size;

  int64_t num_tiles() const { return ceil_div(num_lines, kAmxRows); }
  int64_t num_k() const { return ceil_div(k_size, kAmxK); }
};

// Sixteen f32 of which `count` are there; the rest are zero.
BF16_INLINE __m512 load_some(const float* p, int64_t count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), p);
}

// block[i] = line i's sixteen pairs, for lines that are contiguous along k.
BF16_INLINE void load_by_line(const float* x, int64_t stride, int64_t num_lines, int64_t num_k,
                              __m512i (&block)[kAmxRows]) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kAmxRows; ++i) {
    const int64_t count = i < num_lines ? num_k : 0;
    const float* const line = x + std::min(i, num_lines - 1) * stride;
    block[i] = round_to_pairs(load_some(line, count), load_some(line + 16, count - 16));
  }
}

// block[p] = pair p of sixteen lines, for lines that lie side by side.
BF16_INLINE void load_by_pair(const float* x, int64_t stride, int64_t num_lines, int64_t num_k,
                              __m512i (&block)[kAmxRows]) {
#pragma GCC unroll 16
  for (int64_t p = 0; p < kAmxPairs; ++p) {
    const float* const even = x + std::min(2 * p, num_k - 1) * stride;
    const float* const odd = x + std::min(2 * p + 1, num_k - 1) * stride;
    block[p] = round_to_pairs_of_rows(load_some(even, 2 * p < num_k ? num_lines : 0),
                                      load_some(odd, 2 * p + 1 < num_k ? num_lines : 0));
  }
}

// One tile of 16 lines by 32 k: [line][pair] as A has it, [pair][line] as B does.
template <bool kIsA>
BF16_KERNEL void pack_tile(const TileOperand& x, int64_t tile, int64_t k, uint32_t* out) {
  const int64_t line = tile * kAmxRows, first_k = k * kAmxK;
  const float* const from = x.data + line * x.line_stride + first_k * x.k_stride;
  const int64_t num_lines = std::min(kAmxRows, x.num_lines - line);
  const int64_t num_k = std::min(kAmxK, x.k_size - first_k);
  __m512i block[kAmxRows];
  if (x.k_stride == 1) {
    load_by_line(from, x.line_stride, num_lines, num_k, block);
    if (!kIsA) transpose_lanes(block);
  } else {
    load_by_pair(from, x.k_stride, num_lines, num_k, block);
    if (kIsA) transpose_lanes(block);
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < kAmxRows; ++i) _mm512_store_si512(out + i * kAmxPairs, block[i]);
}

// Tiles [num_tiles][num_k] of one operand.
struct PackedTiles {
  const uint32_t* data;
  int64_t num_k;
  const uint32_t* tile(int64_t i, int64_t k) const { return data + (i * num_k + k) * kTileWords; }
};

template <bool kIsA>
void pack_tiles(const TileOperand& x, int64_t begin, int64_t end, uint32_t* out) {
  for (int64_t i = begin; i < end; ++i)
    for (int64_t k = 0; k < x.num_k(); ++k)
      pack_tile<kIsA>(x, i, k, out + (i * x.num_k() + k) * kTileWords);
}

// A tile of C where the products go: C itself, or a copy where C ends within it.
class OutputTile {
 public:
  OutputTile(View2<float> c_MN, int64_t row, int64_t column)
      : c_(c_MN[std::min(row, c_MN.rows - 1)] + std::min(column, c_MN.cols - 1),
           std::clamp<int64_t>(c_MN.rows - row, 0, kAmxRows),
           std::clamp<int64_t>(c_MN.cols - column, 0, kAmxRows), c_MN.stride) {}

  bool is_there() const { return c_.rows > 0 && c_.cols > 0; }

  template <int kC>
  FATHOM_INLINE void load(bool accumulate) {
    if (!accumulate || !is_there()) return tile_clear<kC>();
    if (!is_whole())
      for (int64_t i = 0; i < c_.rows; ++i) std::copy_n(c_[i], c_.cols, copy_ + i * kAmxRows);
    tile_load<kC>(data(), row_bytes());
  }

  template <int kC>
  FATHOM_INLINE void store() {
    if (!is_there()) return;
    tile_store<kC>(data(), row_bytes());
    if (!is_whole())
      for (int64_t i = 0; i < c_.rows; ++i) std::copy_n(copy_ + i * kAmxRows, c_.cols, c_[i]);
  }

 private:
  bool is_whole() const { return c_.rows == kAmxRows && c_.cols == kAmxRows; }
  float* data() { return is_whole() ? c_.data : copy_; }
  int64_t row_bytes() const {
    return (is_whole() ? c_.stride : kAmxRows) * static_cast<int64_t>(sizeof(float));
  }

  View2<float> c_;
  alignas(64) float copy_[kAmxRows * kAmxRows];
};

// Two by two tiles of C (+)= the products of tiles [k, k_end).
inline void multiply_packed_tiles(const PackedTiles& a, const PackedTiles& b, int64_t m, int64_t n,
                                  int64_t k, int64_t k_end, View2<float> c_MN, bool accumulate) {
  OutputTile c00(c_MN, m * kAmxRows, n * kAmxRows), c01(c_MN, m * kAmxRows, (n + 1) * kAmxRows);
  OutputTile c10(c_MN, (m + 1) * kAmxRows, n * kAmxRows),
      c11(c_MN, (m + 1) * kAmxRows, (n + 1) * kAmxRows);
  const bool has_m = c10.is_there(), has_n = c01.is_there();
  c00.load<0>(accumulate);
  c01.load<1>(accumulate);
  c10.load<2>(accumulate);
  c11.load<3>(accumulate);
  for (; k < k_end; ++k) {
    tile_load<4>(a.tile(m, k), kTileRowBytes);
    tile_load<6>(b.tile(n, k), kTileRowBytes);
    tile_multiply<0, 4, 6>();
    if (has_n) {
      tile_load<7>(b.tile(n + 1, k), kTileRowBytes);
      tile_multiply<1, 4, 7>();
    }
    if (!has_m) continue;
    tile_load<5>(a.tile(m + 1, k), kTileRowBytes);
    tile_multiply<2, 5, 6>();
    if (has_n) tile_multiply<3, 5, 7>();
  }
  c00.store<0>();
  c01.store<1>();
  c10.store<2>();
  c11.store<3>();
}

#endif

}  // namespace fathom::kernels
