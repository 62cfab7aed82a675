// The register tile that the sparse kernels share: 4 rows by up to 24 columns.
#pragma once

#include "kernels/simd.h"

namespace fathom::kernels {

inline constexpr int64_t kTileRows = 4;
inline constexpr int64_t kTileVectors =
    3;  // twelve sums, three operands and a factor: 16 registers
inline constexpr int64_t kTileCols = kTileVectors * kLanes;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t round_up(int64_t count, int64_t multiple) {
  return ceil_div(count, multiple) * multiple;
}

// sum[i][8v + lane] += sum_k a[k][i] * b[k][8v + lane], k in order: a packed [k][4], b's rows
// b_stride apart.
template <int kVectors>
FATHOM_INLINE void multiply_tile(const float* a, const float* b, int64_t b_stride, int64_t k_size,
                                 F32x8 (&sum)[kTileRows][kVectors]) {
  for (int64_t k = 0; k < k_size; ++k) {
    F32x8 row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = load(b + k * b_stride + v * kLanes);
    for (int i = 0; i < kTileRows; ++i) {
      const F32x8 value = broadcast(a[k * kTileRows + i]);
      for (int v = 0; v < kVectors; ++v) sum[i][v] += value * row[v];
    }
  }
}

// Rows [num_rows][dim], `stride` apart, as [num_rows / 4][dim][4]; missing rows are zero.
inline void pack_tile_rows(const float* rows, int64_t num_rows, int64_t dim, int64_t stride,
                           float* out) {
  for (int64_t j = 0; j < round_up(num_rows, kTileRows); ++j)
    for (int64_t x = 0; x < dim; ++x)
      out[j / kTileRows * kTileRows * dim + x * kTileRows + j % kTileRows] =
          j < num_rows ? rows[j * stride + x] : 0.0f;
}

// Eight rows of eight become eight columns.
FATHOM_INLINE void transpose(F32x8 (&row)[kLanes]) {
  F32x8 pair[kLanes], quad[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pair[i] = __builtin_shufflevector(row[i], row[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
    pair[i + 1] = __builtin_shufflevector(row[i], row[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int i = 0; i < kLanes; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const F32x8 a = pair[i + j], b = pair[i + j + 2];
      quad[i + j] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
      quad[i + j + 2] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    row[i] = __builtin_shufflevector(quad[i], quad[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    row[i + 4] = __builtin_shufflevector(quad[i], quad[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// Rows [num_rows <= 24][dim], `stride` apart, as columns: out [dim][24]; missing columns are zero.
FATHOM_INLINE void pack_tile_cols(const float* rows, int64_t num_rows, int64_t dim, int64_t stride,
                                  float* out) {
  for (int64_t s = 0; s < kTileCols; s += kLanes) {
    int64_t x = 0;
    for (; s + kLanes <= num_rows && x + kLanes <= dim; x += kLanes) {
      F32x8 block[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) block[i] = load(rows + (s + i) * stride + x);
      transpose(block);
      for (int64_t i = 0; i < kLanes; ++i) store(out + (x + i) * kTileCols + s, block[i]);
    }
    for (; x < dim; ++x)
      for (int64_t i = s; i < s + kLanes; ++i)
        out[x * kTileCols + i] = i < num_rows ? rows[i * stride + x] : 0.0f;
  }
}

}  // namespace fathom::kernels
