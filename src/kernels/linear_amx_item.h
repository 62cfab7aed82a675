// What the AMX kernels of linear share: x as tiles, and the rows of W that meet some of them.
#pragma once

#include <algorithm>

#include "kernels/amx_tile.h"
#include "kernels/bf16_tile.h"
#include "kernels/fp8.h"
#include "kernels/matmul.h"
#include "kernels/tile.h"

namespace fathom::kernels {

#if FATHOM_HAS_AMX_KERNELS

inline constexpr int64_t kPanels = 2;                     // of W at once, and tiles of x
inline constexpr int64_t kItemRows = kPanels * kAmxRows;  // of W; divides a block of 128
inline constexpr int64_t kItemTiles = 8;                  // of x; more, and sums leave L1
inline constexpr int64_t kTileFloats = kAmxRows * kAmxCols;
inline constexpr int64_t kMinWork = 4 << 20;  // multiplications that are worth a thread

// x in bf16, tile by tile in B's layout: tile (m, k) is [16 pairs][columns], its columns rows of x.
// Rows come by sixteens, the last one for those missing; fewer than sixteen in all are as many
// columns.
struct InputTiles {
  uint32_t* data;
  int64_t columns;
  int64_t num_k;

  uint32_t* tile(int64_t m, int64_t k) const {
    return data + (m * num_k + k) * kAmxPairs * columns;
  }
  int64_t row_bytes() const { return columns * static_cast<int64_t>(sizeof(uint32_t)); }
};

// y[j][n] for y's rows of a C tile [16 n][columns] that lies in memory.
AMX_KERNEL inline void store_columns(const float* c, int64_t columns, int64_t num_n,
                                     View2<float> y) {
  const auto n_mask = first_lanes(num_n);
  if (columns == 1) {
    _mm512_mask_storeu_ps(y[0], n_mask, _mm512_loadu_ps(c));
    return;
  }
  __m512i rows[kAmxRows];
  for (int64_t n = 0; n < kAmxRows; ++n)
    rows[n] = _mm512_maskz_loadu_epi32(first_lanes(columns), c + n * columns);
  transpose_lanes(rows);
  for (int64_t j = 0; j < y.rows; ++j) _mm512_mask_storeu_epi32(y[j], n_mask, rows[j]);
}

// Up to 32 rows of W, in one or two panels of sixteen, and the rows of x that they meet.
struct LinearItem {
  InputTiles x;
  int64_t m, m_end;  // tiles of x
  const WeightView& w;
  int64_t row, num_rows;  // of the whole matrix
  View2<float> y;         // [rows of x from tile m on, num_rows]

  // Of e4m3: those of the item's rows, block after block.
  const float* factors() const {
    return w.scale_inv + row / kQuantGroup * ceil_div(w.cols, kQuantGroup);
  }
  View2<float> output(int64_t panel, int64_t tile) const {
    const int64_t begin = (tile - m) * kAmxCols;
    return {y[begin] + panel * kAmxRows, std::min(kAmxCols, y.rows - begin),
            std::min(kAmxRows, num_rows - panel * kAmxRows), y.stride};
  }
};

// Tiles [m, m_end) of x, and W's rows [row, row + most_rows) of the whole matrix as far as the view
// has them.
inline LinearItem item_of(const InputTiles& x, const WeightView& w, View2<float> y_MN, int64_t row,
                          int64_t most_rows, int64_t m, int64_t m_end) {
  const int64_t begin = std::max(row, w.first_row);
  const int64_t end = std::min(row + most_rows, w.first_row + w.rows);
  return {x,
          m,
          m_end,
          w,
          begin,
          end - begin,
          View2<float>(y_MN[m * kAmxCols] + (begin - w.first_row), y_MN.rows - m * kAmxCols,
                       end - begin, y_MN.stride)};
}

struct TileRows {
  const void* data;
  int64_t row_bytes;
};

// The four tiles of C: two panels by two tiles of x, of which the second may be missing.
FATHOM_INLINE void add_products(TileRows a0, TileRows a1, bool has_panel, const uint32_t* b0,
                                const uint32_t* b1, bool has_tile, int64_t b_row_bytes) {
  tile_load<4>(a0.data, a0.row_bytes);
  tile_load<6>(b0, b_row_bytes);
  tile_multiply<0, 4, 6>();
  if (has_tile) {
    tile_load<7>(b1, b_row_bytes);
    tile_multiply<1, 4, 7>();
  }
  if (!has_panel) return;
  tile_load<5>(a1.data, a1.row_bytes);
  tile_multiply<2, 5, 6>();
  if (has_tile) tile_multiply<3, 5, 7>();
}

// out [panel][tile of x][16][columns], each at a multiple of kTileFloats.
FATHOM_INLINE void store_sums(float* out, int64_t row_bytes, bool has_panel, bool has_tile) {
  tile_store<0>(out, row_bytes);
  if (has_tile) tile_store<1>(out + kTileFloats, row_bytes);
  if (!has_panel) return;
  tile_store<2>(out + 2 * kTileFloats, row_bytes);
  if (has_tile) tile_store<3>(out + 3 * kTileFloats, row_bytes);
}

// store_sums' tiles as y's rows.
inline void store_tiles(const LinearItem& item, int64_t m, const float* c, bool has_panel,
                        bool has_tile) {
  for (int i = 0; i < 4; ++i)
    if ((i / 2 == 0 || has_panel) && (i % 2 == 0 || has_tile)) {
      const View2<float> y = item.output(i / 2, m + i % 2);
      store_columns(c + i * kTileFloats, item.x.columns, y.cols, y);
    }
}

#endif

}  // namespace fathom::kernels
