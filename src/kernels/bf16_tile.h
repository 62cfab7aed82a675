// The register tile of the sparse bf16 kernels: 12, 8 or 6 rows by 32 columns, the common dimension
// in pairs; and the sizes of what is packed for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/bf16_dot.h"

namespace fathom::kernels {

inline constexpr int64_t kPairLanes = 16;
inline constexpr int64_t kPairTileCols = 2 * kPairLanes;

inline int64_t num_pairs(int64_t dim) { return (dim + 1) / 2; }

// How many of `remaining` rows the next tile takes: twelve, eight or six, whichever wastes less (64
// = 4 * 12 + 2 * 8, 128 = 10 * 12 + 8). Each has sums enough to hide the latency of two
// multipliers.
inline int64_t pair_tile_rows(int64_t remaining) {
  if (remaining <= 6) return 6;
  return remaining <= 8 || (remaining > 12 && remaining <= 16) ? 8 : 12;
}

// Rows that the tiles over `count` rows take in all, missing ones included.
inline int64_t round_up_to_pair_tiles(int64_t count) {
  int64_t rows = 0;
  while (rows < count) rows += pair_tile_rows(count - rows);
  return rows;
}

// Scratch that begins with a cache line: a vector of 64 bytes across two of them takes two loads.
class LineBuffer {
 public:
  template <typename T>
  T* reserve(int64_t count) {
    const size_t lines = (count * sizeof(T) + sizeof(Line) - 1) / sizeof(Line);
    if (lines_.size() < lines) lines_.resize(lines);
    return data<T>();
  }
  // Of what was reserved last or before.
  template <typename T>
  T* data() {
    return reinterpret_cast<T*>(lines_.data());
  }
  template <typename T>
  const T* data() const {
    return reinterpret_cast<const T*>(lines_.data());
  }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> lines_;
};

#if FATHOM_HAS_BF16_KERNELS

// sum[i][16v + lane] += the pair a[i][p] . the pair b[p][16v + lane], pairs p in order: a[i][p]
// lies at a[i * kRowStep + p * kPairStep], b's rows are b_stride pairs apart.
template <int kRows, int kRowStep = 1, int kPairStep = kRows>
BF16_INLINE void multiply_pairs(const uint32_t* a, const uint32_t* b, int64_t b_stride,
                                int64_t pairs, __m512 (&sum)[kRows][2]) {
  for (int64_t p = 0; p < pairs; ++p, a += kPairStep, b += b_stride) {
    const __m512i col0 = _mm512_loadu_si512(b), col1 = _mm512_loadu_si512(b + kPairLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const __m512i row = _mm512_set1_epi32(static_cast<int>(a[i * kRowStep]));
      sum[i][0] = dot_pairs(sum[i][0], row, col0);
      sum[i][1] = dot_pairs(sum[i][1], row, col1);
    }
  }
}

template <int kRows>
BF16_INLINE void clear(__m512 (&sum)[kRows][2]) {
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
}

// Rows [num_rows][dim] of f32, `stride` apart, rounded to bf16 and packed tile by tile as
// [pair][rows of the tile]; missing rows are zero.
BF16_INLINE void pack_pair_rows(const float* rows, int64_t num_rows, int64_t dim, int64_t stride,
                                uint32_t* out) {
  const int64_t pairs = num_pairs(dim);
  for (int64_t first = 0, size; first < num_rows; first += size, out += size * pairs) {
    size = pair_tile_rows(num_rows - first);
    for (int64_t i = 0; i < size; ++i) {
      const bool is_missing = first + i >= num_rows;
      const float* const row = rows + (is_missing ? 0 : first + i) * stride;
      for (int64_t x = 0; x < dim; x += kPairTileCols) {
        const int64_t count = is_missing ? 0 : dim - x;
        alignas(64) uint32_t lanes[kPairLanes];
        _mm512_store_si512(
            lanes, round_to_pairs(_mm512_maskz_loadu_ps(first_lanes(count), row + x),
                                  _mm512_maskz_loadu_ps(first_lanes(count > 16 ? count - 16 : 0),
                                                        row + x + 16)));
        for (int64_t p = x / 2; p < pairs && p < x / 2 + kPairLanes; ++p)
          out[p * size + i] = lanes[p - x / 2];
      }
    }
  }
}

#endif

}  // namespace fathom::kernels
