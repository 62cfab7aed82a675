// Products of bf16 tiles in the processor's tile unit (AMX-BF16): 16 rows by 16 columns over 32 k
// in sixteen cycles, some fifteen times what its vector units do where it has one.
//
// Eight tile registers of 16 rows of 64 bytes belong to a thread. While a TileShape lives they are
// laid out for
//   C [rows][columns] f32 += A [rows][32] bf16, row-major, times B [32][columns] bf16 in pairs
//   along k: B's row p holds (b[2p][j], b[2p + 1][j]) for each column j.
// A tile_multiply sums the products of the even k and those of the odd k, each in order from zero,
// and adds both sums' sum to C, all rounded to nearest even, subnormal numbers taken as zero. What
// a number of C gets depends on its row of A and its column of B alone, not on how many there are.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/bf16_dot.h"

#if FATHOM_HAS_BF16_KERNELS && defined(__linux__)
#define FATHOM_HAS_AMX_KERNELS 1
// BF16_KERNEL, and products with matrices of bits. Tile instructions are written out below.
#define AMX_KERNEL __attribute__((target("arch=x86-64-v4,avx512bf16,avx512vbmi,gfni")))
#define AMX_INLINE AMX_KERNEL inline __attribute__((always_inline))
#else
#define FATHOM_HAS_AMX_KERNELS 0
#endif

namespace fathom::kernels {

inline constexpr int64_t kAmxRows = 16;
inline constexpr int64_t kAmxK = 32;
inline constexpr int64_t kAmxPairs = kAmxK / 2;
inline constexpr int64_t kAmxCols = 16;
inline constexpr int64_t kTileWords = kAmxRows * kAmxPairs;  // of A; of B with 16 columns
inline constexpr int64_t kTileBytes = kTileWords * static_cast<int64_t>(sizeof(uint32_t));

// Whether this processor and its system run AMX kernels; a process asks the system once.
// FATHOM_NO_AMX in the environment says no. Implies has_bf16_dot().
bool has_amx();

#if FATHOM_HAS_AMX_KERNELS

// Lays out the calling thread's tiles: 0 to 3 as C, 4 and 5 as A, 6 and 7 as B, of `columns` and
// `rows` <= 16; fewer rows take less time.
// Their contents are undefined until loaded or cleared; they are given back at the end. Shapes do
// not nest. Costs some two hundred cycles, so kernels make one for many tiles where they can.
class TileShape {
 public:
  explicit TileShape(int64_t columns, int64_t rows = kAmxRows);
  ~TileShape();
  TileShape(const TileShape&) = delete;
  TileShape& operator=(const TileShape&) = delete;
};

// Each names its tiles as constants and tells the compiler that memory is read or written.
template <int kTile>
FATHOM_INLINE void tile_clear() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
FATHOM_INLINE void clear_sums() {  // all tiles of C
  tile_clear<0>();
  tile_clear<1>();
  tile_clear<2>();
  tile_clear<3>();
}
template <int kTile>
FATHOM_INLINE void tile_load(const void* data, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(data), "l"(row_bytes), "i"(kTile) : "memory");
}
template <int kTile>
FATHOM_INLINE void tile_store(void* data, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(data), "l"(row_bytes), "i"(kTile) : "memory");
}
template <int kC, int kA, int kB>
FATHOM_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

// Two tiles of an operand in memory and those that follow along k. Where there is but one, it
// stands for both.
struct TilePair {
  const void *first, *second;
  int64_t row_bytes, k_bytes;  // from a row to the next, from a tile to the next along k
};

// Tiles 0 to 3, C by two rows and two columns of tiles, += a b over num_k tiles along k.
FATHOM_INLINE void multiply_two_by_two(const TilePair& a, const TilePair& b, int64_t num_k) {
  const auto at = [](const void* tile, int64_t bytes) {
    return static_cast<const std::byte*>(tile) + bytes;
  };
  for (int64_t k = 0; k < num_k; ++k) {
    tile_load<4>(at(a.first, k * a.k_bytes), a.row_bytes);
    tile_load<6>(at(b.first, k * b.k_bytes), b.row_bytes);
    tile_multiply<0, 4, 6>();
    tile_load<7>(at(b.second, k * b.k_bytes), b.row_bytes);
    tile_multiply<1, 4, 7>();
    tile_load<5>(at(a.second, k * a.k_bytes), a.row_bytes);
    tile_multiply<2, 5, 6>();
    tile_multiply<3, 5, 7>();
  }
}

// The same tiles of a matrix of f32, whose second row or column of tiles may be missing.
struct SumTiles {
  float* data;
  int64_t row_bytes;
  bool has_second_row = true, has_second_column = true;

  FATHOM_INLINE float* at(int64_t row, int64_t column) const {
    return data + row * kAmxRows * (row_bytes / static_cast<int64_t>(sizeof(float))) +
           column * kAmxCols;
  }
  FATHOM_INLINE void load() const {
    clear_sums();
    tile_load<0>(at(0, 0), row_bytes);
    if (has_second_column) tile_load<1>(at(0, 1), row_bytes);
    if (has_second_row) tile_load<2>(at(1, 0), row_bytes);
    if (has_second_row && has_second_column) tile_load<3>(at(1, 1), row_bytes);
  }
  FATHOM_INLINE void store() const {
    tile_store<0>(at(0, 0), row_bytes);
    if (has_second_column) tile_store<1>(at(0, 1), row_bytes);
    if (has_second_row) tile_store<2>(at(1, 0), row_bytes);
    if (has_second_row && has_second_column) tile_store<3>(at(1, 1), row_bytes);
  }
};

#endif

}  // namespace fathom::kernels
