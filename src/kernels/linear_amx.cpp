#include "kernels/linear_amx.h"

#include <algorithm>
#include <cstring>

#include "base/parallel.h"
#include "kernels/amx_tile.h"
#include "kernels/bf16_tile.h"
#include "kernels/linear_amx_e4m3.h"
#include "kernels/tile.h"

namespace fathom::kernels {

#if FATHOM_HAS_AMX_KERNELS

namespace {

constexpr int64_t kMostAhead = 16 << 10;  // bytes of W, and of its long rows
constexpr int64_t kRowAhead = 512;
constexpr int64_t kInputAhead = 128;  // numbers of x

// Up to sixteen rows of x as the tiles of 64 k from `k` on (of 32: num_tiles). The last row stands
// in for those that are missing: nobody reads the sums.
AMX_KERNEL void pack_input(View2<const float> x, int64_t k, int64_t columns, bool is_e4m3,
                           int64_t num_tiles, uint32_t* out) {
  const auto mask = first_lanes(columns);
  for (int64_t half = 0; half < num_tiles; ++half) {
    const int64_t at = std::min(k + half * kAmxK, x.cols), left = x.cols - at;
    const auto low = first_lanes(left), high = first_lanes(left - 16);
    __m512i pairs[kAmxCols];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kAmxCols; ++i) {
      const float* const row = x.data + std::min(i, x.rows - 1) * x.stride + at;
      __builtin_prefetch(row + kInputAhead);
      __builtin_prefetch(row + kInputAhead + 16);
      pairs[i] =
          round_to_pairs(_mm512_maskz_loadu_ps(low, row), _mm512_maskz_loadu_ps(high, row + 16));
    }
    transpose_lanes(pairs);
#pragma GCC unroll 16
    for (int64_t p = 0; p < kAmxPairs; ++p) {
      const int64_t pair = half * kAmxPairs + p;
      _mm512_mask_storeu_epi32(out + (is_e4m3 ? place_of_pair(pair) : pair) * columns, mask,
                               pairs[p]);
    }
  }
}

// --- W in BF16 ---

// A panel's rows as tile_load takes them: where they are, or a copy with whole tiles.
TileRows bf16_panel(const LinearItem& item, int64_t panel, uint16_t* copy) {
  const int64_t cols = item.w.cols, begin = item.row + panel * kAmxRows;
  const int64_t num_rows = std::min(kAmxRows, item.num_rows - panel * kAmxRows);
  const auto* const rows = static_cast<const uint16_t*>(item.w.data) + begin * cols;
  const int64_t row_bytes = cols * static_cast<int64_t>(sizeof *rows);
  if (num_rows == kAmxRows && cols % kAmxK == 0) return {rows, row_bytes};
  const int64_t padded = item.x.num_k * kAmxK;
  std::fill_n(copy, kAmxRows * padded, uint16_t{0});
  for (int64_t i = 0; i < num_rows; ++i) std::memcpy(copy + i * padded, rows + i * cols, row_bytes);
  return {copy, padded * static_cast<int64_t>(sizeof *copy)};
}

// Asks for a tile's rows of the next item, which follow a whole one's in memory (behind a copy lies
// nothing, at no harm); where rows are long, for what comes next of them.
void ask_for_next(TileRows a, int64_t at) {
  const int64_t item_bytes = kItemRows * a.row_bytes;
  auto address = reinterpret_cast<uintptr_t>(a.data) + at +
                 (item_bytes <= kMostAhead ? item_bytes : kRowAhead);
  for (int64_t i = 0; i < kAmxRows; ++i, address += a.row_bytes)
    __builtin_prefetch(reinterpret_cast<const void*>(address));
}

// One or two panels by one or two tiles of x, all k: the sums never leave their tiles.
void multiply_bf16(const LinearItem& item, int64_t m, TileRows a0, TileRows a1) {
  alignas(64) float c[4 * kTileFloats];
  const bool has_panel = item.num_rows > kAmxRows, has_tile = m + 1 < item.m_end;
  const uint32_t* const b0 = item.x.tile(m, 0);
  const uint32_t* const b1 = item.x.tile(m + has_tile, 0);
  const int64_t b_step = kAmxPairs * item.x.columns;
  clear_sums();
  for (int64_t k = 0; k < item.x.num_k; ++k) {
    const int64_t at = k * kAmxK * static_cast<int64_t>(sizeof(uint16_t));
    add_products({static_cast<const char*>(a0.data) + at, a0.row_bytes},
                 {static_cast<const char*>(a1.data) + at, a1.row_bytes}, has_panel, b0 + k * b_step,
                 b1 + k * b_step, has_tile, item.x.row_bytes());
    if (m > item.m || has_tile || !has_panel) continue;
    ask_for_next(a0, at);
    ask_for_next(a1, at);
  }
  store_sums(c, item.x.row_bytes(), has_panel, has_tile);
  store_tiles(item, m, c, has_panel, has_tile);
}

void multiply_bf16(const LinearItem& item) {
  static thread_local LineBuffer buffer;
  const int64_t panel_size = kAmxRows * item.x.num_k * kAmxK;
  auto* const copy = buffer.reserve<uint16_t>(kPanels * panel_size);
  const TileRows a0 = bf16_panel(item, 0, copy);
  const TileRows a1 = item.num_rows > kAmxRows ? bf16_panel(item, 1, copy + panel_size) : a0;
  for (int64_t m = item.m; m < item.m_end; m += 2) multiply_bf16(item, m, a0, a1);
}

InputTiles pack_inputs(View2<const float> x_MK, bool is_e4m3, LineBuffer& buffer) {
  const int64_t columns = std::min(x_MK.rows, kAmxCols), num_m = ceil_div(x_MK.rows, kAmxCols);
  const int64_t num_k =
      is_e4m3 ? ceil_div(x_MK.cols, kQuantGroup) * kBlockTiles : ceil_div(x_MK.cols, kAmxK);
  const InputTiles tiles{buffer.reserve<uint32_t>(num_m * num_k * kAmxPairs * columns), columns,
                         num_k};
  const int64_t grain = std::max<int64_t>(1, kMinWork / (kAmxCols * 32 * kAmxK * num_k));
  base::parallel_for(num_m, grain, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const auto rows = x_MK.slice_rows(m * kAmxCols, std::min((m + 1) * kAmxCols, x_MK.rows));
      for (int64_t k = 0; k < num_k; k += 2)
        pack_input(rows, k * kAmxK, columns, is_e4m3, std::min<int64_t>(2, num_k - k),
                   tiles.tile(m, k));
    }
  });
  return tiles;
}

}  // namespace

void linear_amx(View2<const float> x_MK, const WeightView& w, View2<float> y_MN) {
  if (x_MK.rows == 0 || w.rows == 0) return;
  CHECK_GE(w.cols, 1);
  static thread_local LineBuffer buffer;
  const bool is_e4m3 = w.format == WeightFormat::kE4M3;
  const InputTiles x = pack_inputs(x_MK, is_e4m3, buffer);
  if (is_e4m3 && x_MK.rows > 2 * kAmxCols && has_powers_of_two(w))
    return multiply_in_strips(x, w, y_MN);
  // Items are cut at multiples of 32 of the whole matrix, whose rows share their factors.
  const int64_t first = w.first_row / kItemRows;
  const int64_t num_items = ceil_div(w.first_row + w.rows, kItemRows) - first;
  const int64_t num_m = ceil_div(x_MK.rows, kAmxCols), num_m_blocks = ceil_div(num_m, kItemTiles);
  const int64_t work = std::min(x_MK.rows, kItemTiles * kAmxCols) * kItemRows * w.cols;
  const int64_t grain = std::max<int64_t>(1, kMinWork / std::max<int64_t>(work, 1));
  base::parallel_for(num_items * num_m_blocks, grain, [&](int64_t begin, int64_t end) {
    const TileShape shape(x.columns);
    for (int64_t at = begin; at < end; ++at) {
      const int64_t m = at % num_m_blocks * kItemTiles;
      const LinearItem item = item_of(x, w, y_MN, (first + at / num_m_blocks) * kItemRows,
                                      kItemRows, m, std::min(m + kItemTiles, num_m));
      is_e4m3 ? multiply_e4m3(item) : multiply_bf16(item);
    }
  });
}

#else

void linear_amx(View2<const float>, const WeightView&, View2<float>) {
  CHECK(false, "no AMX: ask has_amx() first");
}

#endif

}  // namespace fathom::kernels
