#include "kernels/linear_amx.h"

#include <algorithm>
#include <cstring>

#include "base/parallel.h"
#include "kernels/amx_tile.h"
#include "kernels/bf16_tile.h"
#include "kernels/fp8.h"
#include "kernels/tile.h"

namespace fathom::kernels {

#if FATHOM_HAS_AMX_KERNELS

namespace {

constexpr int64_t kPanels = 2;                        // of W at once, and tiles of x: four of C
constexpr int64_t kItemRows = kPanels * kAmxRows;     // of W; divides a block of 128
constexpr int64_t kItemTiles = 8;                     // of x, whose sums stay in L1
constexpr int64_t kTileWords = kAmxRows * kAmxPairs;  // of 32 bits: one tile of bf16, 1 KiB
constexpr int64_t kBlockTiles = kQuantGroup / kAmxK;  // that share a factor
constexpr int64_t kMinWork = 4 << 20;                 // multiplications that are worth a thread
constexpr int64_t kAhead = 256;  // bytes: two blocks of each of the streams of e4m3

// x in bf16, tile by tile in B's layout: tile (m, k) is [16 pairs][columns], its columns rows of x.
// Rows come by sixteens, those missing are zero; fewer than sixteen in all are as many columns.
struct InputTiles {
  const uint32_t* data;
  int64_t columns;
  int64_t num_k;

  const uint32_t* tile(int64_t m, int64_t k) const {
    return data + (m * num_k + k) * kAmxPairs * columns;
  }
  int64_t row_bytes() const { return columns * static_cast<int64_t>(sizeof(uint32_t)); }
};

// Where pair p of 64 numbers goes: in the order of widen_e4m3_parts, or as it is.
int64_t place_of_pair(int64_t p, bool is_e4m3) {
  return is_e4m3 ? p / 4 % 2 * kAmxPairs + p / 8 * 4 + p % 4 : p;
}

// Rows [0, num_rows) of x, num_rows <= 16, over the tiles of 64 k from `k` on.
BF16_KERNEL void pack_input(View2<const float> x, int64_t k, int64_t columns, bool is_e4m3,
                            int64_t num_tiles, uint32_t* out) {
  const auto mask = first_lanes(columns);
  for (int64_t half = 0; half < num_tiles; ++half) {
    const int64_t at = k + half * kAmxK;
    __m512i pairs[kAmxCols];
    for (int64_t i = 0; i < kAmxCols; ++i) {
      const int64_t left = i < x.rows ? x.cols - at : 0;
      const float* const row = x[std::min(i, x.rows - 1)] + std::min(at, x.cols);
      pairs[i] = round_to_pairs(_mm512_maskz_loadu_ps(first_lanes(left), row),
                                _mm512_maskz_loadu_ps(first_lanes(left - 16), row + 16));
    }
    transpose_lanes(pairs);
    for (int64_t p = 0; p < kAmxPairs; ++p)
      _mm512_mask_storeu_epi32(out + place_of_pair(half * kAmxPairs + p, is_e4m3) * columns, mask,
                               pairs[p]);
  }
}

// y[j][n] for `num_columns` of a C tile [16 n][columns] that lies in memory.
BF16_KERNEL void store_columns(const float* c, int64_t columns, int64_t num_n, View2<float> y) {
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
struct Item {
  InputTiles x;
  int64_t m, m_end;  // tiles of x
  const WeightView& w;
  int64_t row, num_rows;  // of the whole matrix
  View2<float> y;         // [rows of x from tile m on, num_rows]

  View2<float> output(int64_t panel, int64_t tile) const {
    const int64_t begin = (tile - m) * kAmxCols;
    return {y[begin] + panel * kAmxRows, std::min(kAmxCols, y.rows - begin),
            std::min(kAmxRows, num_rows - panel * kAmxRows), y.stride};
  }
};

// The four tiles of C: panels by tiles of x.
template <int kP, int kM>
FATHOM_INLINE void clear_sums() {
  tile_clear<0>();
  if (kM > 1) tile_clear<1>();
  if (kP > 1) tile_clear<2>();
  if (kP > 1 && kM > 1) tile_clear<3>();
}

struct TileRows {
  const void* data;
  int64_t row_bytes;
};

template <int kP, int kM>
FATHOM_INLINE void add_products(TileRows a0, TileRows a1, const uint32_t* b0, const uint32_t* b1,
                                int64_t b_row_bytes) {
  tile_load<4>(a0.data, a0.row_bytes);
  tile_load<6>(b0, b_row_bytes);
  tile_multiply<0, 4, 6>();
  if (kM > 1) {
    tile_load<7>(b1, b_row_bytes);
    tile_multiply<1, 4, 7>();
  }
  if (kP > 1) {
    tile_load<5>(a1.data, a1.row_bytes);
    tile_multiply<2, 5, 6>();
    if (kM > 1) tile_multiply<3, 5, 7>();
  }
}

constexpr int64_t kTileFloats = kAmxRows * kAmxCols;

// out [panels][tiles of x][16][columns], each at a multiple of kTileFloats.
template <int kP, int kM>
FATHOM_INLINE void store_sums(float* out, int64_t row_bytes) {
  tile_store<0>(out, row_bytes);
  if (kM > 1) tile_store<1>(out + kTileFloats, row_bytes);
  if (kP > 1) tile_store<2>(out + 2 * kTileFloats, row_bytes);
  if (kP > 1 && kM > 1) tile_store<3>(out + 3 * kTileFloats, row_bytes);
}

// --- W in BF16 ---

// A panel's rows as tile_load takes them: where they are, or a copy with whole tiles.
TileRows bf16_panel(const Item& item, int64_t panel, uint16_t* copy) {
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

template <int kP, int kM>
void multiply_bf16(const Item& item, int64_t m, TileRows a0, TileRows a1) {
  alignas(64) float c[kPanels * 2 * kTileFloats];
  clear_sums<kP, kM>();
  const uint32_t* b0 = item.x.tile(m, 0);
  const uint32_t* b1 = item.x.tile(m + kM - 1, 0);
  const int64_t b_step = kAmxPairs * item.x.columns;
  for (int64_t k = 0; k < item.x.num_k; ++k) {
    const int64_t at = k * kAmxK * static_cast<int64_t>(sizeof(uint16_t));
    add_products<kP, kM>({static_cast<const char*>(a0.data) + at, a0.row_bytes},
                         {static_cast<const char*>(a1.data) + at, a1.row_bytes}, b0 + k * b_step,
                         b1 + k * b_step, item.x.row_bytes());
  }
  store_sums<kP, kM>(c, item.x.row_bytes());
  for (int p = 0; p < kP; ++p)
    for (int t = 0; t < kM; ++t) {
      const View2<float> y = item.output(p, m + t);
      store_columns(c + (2 * p + t) * kTileFloats, item.x.columns, y.cols, y);
    }
}

void multiply_bf16(const Item& item) {
  static thread_local LineBuffer buffer;
  const int64_t panel_size = kAmxRows * item.x.num_k * kAmxK;
  auto* const copy = buffer.reserve<uint16_t>(kPanels * panel_size);
  const bool is_pair = item.num_rows > kAmxRows;
  const TileRows a0 = bf16_panel(item, 0, copy);
  const TileRows a1 = is_pair ? bf16_panel(item, 1, copy + panel_size) : a0;
  for (int64_t m = item.m; m < item.m_end; m += 2) {
    const bool is_two = m + 1 < item.m_end;
    if (is_pair)
      is_two ? multiply_bf16<2, 2>(item, m, a0, a1) : multiply_bf16<2, 1>(item, m, a0, a1);
    else
      is_two ? multiply_bf16<1, 2>(item, m, a0, a1) : multiply_bf16<1, 1>(item, m, a0, a1);
  }
}

// --- W in E4M3 ---

// A block of 128 columns of an item's rows, widened: [panel][tile of k][16 rows][32 k].
struct WidenedBlock {
  alignas(64) uint16_t tiles[kPanels][kBlockTiles][kAmxRows][kAmxK];
};

// Rows [begin, end) of the item from column k on; zeros where W has none.
BF16_KERNEL void widen_block(const Item& item, int64_t k, int64_t begin, int64_t end,
                             WidenedBlock& out) {
  const E4M3Widener table = e4m3_widener();
  const int64_t cols = item.w.cols;
  for (int64_t i = begin; i < end; ++i) {
    const uint8_t* const row = static_cast<const uint8_t*>(item.w.data) +
                               (item.row + std::min(i, item.num_rows - 1)) * cols;
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t at = k + 64 * half, left = i < item.num_rows ? cols - at : 0;
      _mm_prefetch(reinterpret_cast<const char*>(row + at + kAhead), _MM_HINT_T0);
      const __mmask64 mask = left >= 64  ? ~__mmask64{0}
                             : left <= 0 ? 0
                                         : (__mmask64{1} << left) - 1;
      __m512i wide[2];
      widen_e4m3_parts(table, _mm512_maskz_loadu_epi8(mask, row + at), wide);
      auto& tiles = out.tiles[i / kAmxRows];
      _mm512_store_si512(tiles[2 * half][i % kAmxRows], wide[0]);
      _mm512_store_si512(tiles[2 * half + 1][i % kAmxRows], wide[1]);
    }
  }
}

// sums += c times the block's factor, over the item's tiles of C.
template <int kP, int kM>
BF16_KERNEL void add_scaled(const float* c, float factor, int64_t columns, bool is_first,
                            float* sums, int64_t panel_stride) {
  const __m512 scale = _mm512_set1_ps(factor);
  for (int p = 0; p < kP; ++p)
    for (int t = 0; t < kM; ++t)
      for (int64_t i = 0; i < columns; ++i) {
        float* const to = sums + p * panel_stride + t * kTileFloats + i * kAmxRows;
        const __m512 before = is_first ? _mm512_setzero_ps() : _mm512_load_ps(to);
        _mm512_store_ps(
            to, _mm512_fmadd_ps(_mm512_load_ps(c + (2 * p + t) * kTileFloats + i * kAmxRows), scale,
                                before));
      }
}

template <int kP, int kM>
FATHOM_INLINE void multiply_block(const Item& item, int64_t m, int64_t k, const WidenedBlock& w) {
  clear_sums<kP, kM>();
  for (int64_t t = 0; t < kBlockTiles; ++t)
    add_products<kP, kM>({w.tiles[0][t], sizeof w.tiles[0][t][0]},
                         {w.tiles[1][t], sizeof w.tiles[1][t][0]}, item.x.tile(m, k / kAmxK + t),
                         item.x.tile(m + kM - 1, k / kAmxK + t), item.x.row_bytes());
}

// One block of columns; meanwhile the vector units widen the next.
template <int kP>
void multiply_blocks(const Item& item, const float* factors) {
  WidenedBlock blocks[2];
  alignas(64) float c[kPanels * 2 * kTileFloats];
  alignas(64) float sums[kPanels * kItemTiles * kTileFloats];
  constexpr int64_t kPanelSums = kItemTiles * kTileFloats;
  const int64_t columns = item.x.columns, num_m = item.m_end - item.m;
  const int64_t num_steps = ceil_div(num_m, 2), num_rows = kP * kAmxRows;
  widen_block(item, 0, 0, num_rows, blocks[0]);
  for (int64_t k = 0; k < item.w.cols; k += kQuantGroup) {
    const int64_t block = k / kQuantGroup;
    for (int64_t step = 0; step < num_steps; ++step) {
      const int64_t m = item.m + 2 * step;
      const bool is_two = m + 1 < item.m_end;
      if (is_two)
        multiply_block<kP, 2>(item, m, k, blocks[block % 2]);
      else
        multiply_block<kP, 1>(item, m, k, blocks[block % 2]);
      if (k + kQuantGroup < item.w.cols)
        widen_block(item, k + kQuantGroup, num_rows * step / num_steps,
                    num_rows * (step + 1) / num_steps, blocks[1 - block % 2]);
      float* const to = sums + 2 * step * kTileFloats;
      if (is_two) {
        store_sums<kP, 2>(c, item.x.row_bytes());
        add_scaled<kP, 2>(c, factors[block], columns, k == 0, to, kPanelSums);
      } else {
        store_sums<kP, 1>(c, item.x.row_bytes());
        add_scaled<kP, 1>(c, factors[block], columns, k == 0, to, kPanelSums);
      }
    }
  }
  for (int p = 0; p < kP; ++p)
    for (int64_t t = 0; t < num_m; ++t) {
      const View2<float> y = item.output(p, item.m + t);
      store_columns(sums + p * kPanelSums + t * kTileFloats, columns, y.cols, y);
    }
}

void multiply_item(const Item& item) {
  if (item.w.format == WeightFormat::kBF16) return multiply_bf16(item);
  const float* const factors =
      item.w.scale_inv + item.row / kQuantGroup * ceil_div(item.w.cols, kQuantGroup);
  item.num_rows > kAmxRows ? multiply_blocks<2>(item, factors) : multiply_blocks<1>(item, factors);
}

InputTiles pack_inputs(View2<const float> x_MK, bool is_e4m3, LineBuffer& buffer) {
  const int64_t columns = std::min(x_MK.rows, kAmxCols), num_m = ceil_div(x_MK.rows, kAmxCols);
  const int64_t num_k =
      is_e4m3 ? ceil_div(x_MK.cols, kQuantGroup) * kBlockTiles : ceil_div(x_MK.cols, kAmxK);
  auto* const tiles = buffer.reserve<uint32_t>(num_m * num_k * kAmxPairs * columns);
  const int64_t grain = std::max<int64_t>(1, kMinWork / (kAmxCols * 32 * num_k * kAmxK));
  base::parallel_for(num_m, grain, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const auto rows = x_MK.slice_rows(m * kAmxCols, std::min((m + 1) * kAmxCols, x_MK.rows));
      for (int64_t k = 0; k < num_k; k += 2)
        pack_input(rows, k * kAmxK, columns, is_e4m3, std::min<int64_t>(2, num_k - k),
                   tiles + (m * num_k + k) * kAmxPairs * columns);
    }
  });
  return {tiles, columns, num_k};
}

}  // namespace

void linear_amx(View2<const float> x_MK, const WeightView& w, View2<float> y_MN) {
  if (x_MK.rows == 0 || w.rows == 0) return;
  static thread_local LineBuffer buffer;
  const InputTiles x = pack_inputs(x_MK, w.format == WeightFormat::kE4M3, buffer);
  // Items are cut at multiples of 32 of the whole matrix, whose rows share their factors.
  const int64_t first = w.first_row / kItemRows;
  const int64_t num_items = ceil_div(w.first_row + w.rows, kItemRows) - first;
  const int64_t num_m = ceil_div(x_MK.rows, kAmxCols), num_m_blocks = ceil_div(num_m, kItemTiles);
  const int64_t work = std::min(x_MK.rows, kItemTiles * kAmxCols) * kItemRows * w.cols;
  const int64_t grain = std::max<int64_t>(1, kMinWork / std::max<int64_t>(work, 1));
  base::parallel_for(num_items * num_m_blocks, grain, [&](int64_t begin, int64_t end) {
    const TileShape shape(x.columns);
    for (int64_t at = begin; at < end; ++at) {
      const int64_t m = at / num_items * kItemTiles, item = first + at % num_items;
      const int64_t row = std::max(item * kItemRows, w.first_row);
      const int64_t num_rows = std::min((item + 1) * kItemRows, w.first_row + w.rows) - row;
      multiply_item({x, m, std::min(m + kItemTiles, num_m), w, row, num_rows,
                     View2<float>(y_MN[m * kAmxCols] + (row - w.first_row),
                                  x_MK.rows - m * kAmxCols, num_rows, y_MN.stride)});
    }
  });
}

#else

void linear_amx(View2<const float>, const WeightView&, View2<float>) {
  CHECK(false, "no AMX: ask has_amx() first");
}

#endif

}  // namespace fathom::kernels
