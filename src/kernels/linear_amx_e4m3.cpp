#include "kernels/linear_amx_e4m3.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "base/parallel.h"
#include "kernels/e4m3_bits_amx.h"
#include "kernels/fp8.h"

namespace fathom::kernels {

#if FATHOM_HAS_AMX_KERNELS

namespace {

constexpr int64_t kStripTiles = 4;        // of x, that meet a widened tile of W
constexpr int64_t kMostStripBlocks = 64;  // of 64 rows of x: 1 MiB of the second cache
constexpr int64_t kAhead = 256;           // bytes: two blocks of each of the streams

// A block of 128 columns of an item's rows, widened: [panel][tile of k][16 rows][32 k].
struct WidenedBlock {
  alignas(64) uint16_t tiles[kPanels][kBlockTiles][kAmxRows][kAmxK];
};

// Factors that go into W: those of e4m3 in bf16 stay normal numbers.
constexpr int kGreatestExponent = 64;
int exponent_of(float factor) { return (std::bit_cast<int32_t>(factor) >> 23) - 127; }
bool are_powers_of_two(const float* factors, int64_t count) {
  return std::all_of(factors, factors + count, [](float factor) {
    return (std::bit_cast<uint32_t>(factor) & 0x807fffff) == 0 &&
           std::abs(exponent_of(factor)) <= kGreatestExponent;
  });
}

// The widening of one block, row after row, as the tile unit leaves time for it.
struct Widening {
  const uint8_t* row;  // the next, at the block's first column
  int64_t stride;
  int64_t num_left;   // rows, those that are missing included
  int64_t num_there;  // of them; the last one stands in for the others, whose sums nobody reads
  __mmask64 mask[2];  // of the columns that there are
  uintptr_t ahead;    // bytes, to what is asked for early
  uint16_t* out;      // the next row's part of the panel's first tile
  int16_t exponent;   // of the block's factor, in a bf16's place
};
constexpr int64_t kTileNumbers = kAmxRows * kAmxK;
constexpr int64_t kRowsASlot = kAmxRows / kBlockTiles;  // of one panel, beside a tile of W

// From column k on. At a row's end the same row of the next item is asked for.
Widening start_widening(const LinearItem& item, int64_t k, WidenedBlock& out) {
  const int64_t cols = item.w.cols;
  const auto mask_of = [](int64_t left) {
    return left >= 64 ? ~__mmask64{0} : left <= 0 ? 0 : (__mmask64{1} << left) - 1;
  };
  const int64_t to_next = k + kAhead < cols ? 0 : (item.num_rows - 1) * cols;
  return {static_cast<const uint8_t*>(item.w.data) + item.row * cols + k,
          cols,
          round_up(item.num_rows, kAmxRows),
          item.num_rows,
          {mask_of(cols - k), mask_of(cols - k - 64)},
          static_cast<uintptr_t>(kAhead + to_next),
          &out.tiles[0][0][0][0],
          static_cast<int16_t>(exponent_of(item.factors()[k / kQuantGroup]) << 7)};
}

AMX_INLINE void ask_for(uintptr_t address) {
  _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0);
}

template <bool kIsScaled>
AMX_INLINE void widen_rows(const E4M3BitWidener& table, int64_t count, Widening& w) {
  const __m512i exponent = _mm512_set1_epi16(w.exponent);
  for (count = std::min(count, w.num_left); count > 0; --count) {
    const auto address = reinterpret_cast<uintptr_t>(w.row) + w.ahead;
    ask_for(address);
    ask_for(address + 64);
    const __m512i bytes[2] = {_mm512_maskz_loadu_epi8(w.mask[0], w.row),
                              _mm512_maskz_loadu_epi8(w.mask[1], w.row + 64)};
    __m512i wide[2][2];
    widen_e4m3_bits<kIsScaled>(table, exponent, bytes, wide);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) _mm512_store_si512(w.out + i * kTileNumbers, wide[i / 2][i % 2]);
    if (--w.num_there > 0) w.row += w.stride;
    w.out += kAmxK;
    // A panel's first row is as far from the last row of the panel before it as its four tiles are.
    if (--w.num_left == kAmxRows) w.out += (kBlockTiles - 1) * kTileNumbers;
  }
}

// --- E4M3 with powers of two for factors: they go into W, and sums stay in their tiles ---

// Two panels by two tiles of x, and two more: for few of them.
AMX_KERNEL void multiply_scaled(const LinearItem& item, int64_t m) {
  WidenedBlock blocks[2];
  alignas(64) float c[4 * kTileFloats];
  const E4M3BitWidener table = e4m3_bit_widener();
  const int64_t num_blocks = item.x.num_k / kBlockTiles;
  const bool has_panel = item.num_rows > kAmxRows, has_tile = m + 1 < item.m_end;
  Widening next = start_widening(item, 0, blocks[0]);
  widen_rows<true>(table, next.num_left, next);
  clear_sums();
  for (int64_t block = 0; block < num_blocks; ++block) {
    const WidenedBlock& w = blocks[block % 2];
    if (block + 1 < num_blocks)
      next = start_widening(item, (block + 1) * kQuantGroup, blocks[1 - block % 2]);
    const int64_t rows_a_slot = ceil_div(next.num_left, kBlockTiles);
    for (int64_t i = 0; i < kBlockTiles; ++i) {
      const int64_t k = block * kBlockTiles + i;
      add_products({w.tiles[0][i], sizeof w.tiles[0][i][0]},
                   {w.tiles[1][i], sizeof w.tiles[1][i][0]}, has_panel, item.x.tile(m, k),
                   item.x.tile(m + has_tile, k), has_tile, item.x.row_bytes());
      widen_rows<true>(table, rows_a_slot, next);
    }
  }
  store_sums(c, item.x.row_bytes(), has_panel, has_tile);
  store_tiles(item, m, c, has_panel, has_tile);
}

// Blocks [begin, end) of k, behind those whose sums stand in `sums`, if any do.
struct Strip {
  int64_t begin, end;
  float* sums;  // [tile of x][16][16]
};

constexpr int64_t kSumsRowBytes = kAmxCols * sizeof(float);

void load_strip_sums(const float* from, int64_t num_tiles) {
  tile_load<0>(from, kSumsRowBytes);
  if (num_tiles > 1) tile_load<1>(from + kTileFloats, kSumsRowBytes);
  if (num_tiles > 2) tile_load<2>(from + 2 * kTileFloats, kSumsRowBytes);
  if (num_tiles > 3) tile_load<3>(from + 3 * kTileFloats, kSumsRowBytes);
}
void store_strip_sums(float* to, int64_t num_tiles) {
  tile_store<0>(to, kSumsRowBytes);
  if (num_tiles > 1) tile_store<1>(to + kTileFloats, kSumsRowBytes);
  if (num_tiles > 2) tile_store<2>(to + 2 * kTileFloats, kSumsRowBytes);
  if (num_tiles > 3) tile_store<3>(to + 3 * kTileFloats, kSumsRowBytes);
}

// One panel by up to four tiles of x: a widened tile of W meets them all.
AMX_KERNEL void multiply_strip(const LinearItem& item, const Strip& strip) {
  WidenedBlock blocks[2];
  alignas(64) float c[kStripTiles * kTileFloats];
  const E4M3BitWidener table = e4m3_bit_widener();
  const InputTiles& x = item.x;
  const int64_t num_m = item.m_end - item.m, row_bytes = x.row_bytes();
  Widening next = start_widening(item, strip.begin * kQuantGroup, blocks[strip.begin % 2]);
  widen_rows<true>(table, next.num_left, next);
  strip.begin > 0 ? load_strip_sums(strip.sums, num_m) : clear_sums();
  for (int64_t block = strip.begin; block < strip.end; ++block) {
    const WidenedBlock& w = blocks[block % 2];
    if (block + 1 < strip.end)
      next = start_widening(item, (block + 1) * kQuantGroup, blocks[1 - block % 2]);
    for (int64_t i = 0; i < kBlockTiles; ++i) {
      const int64_t k = block * kBlockTiles + i;
      tile_load<4>(w.tiles[0][i], sizeof w.tiles[0][i][0]);
      tile_load<6>(x.tile(item.m, k), row_bytes);
      tile_multiply<0, 4, 6>();
      widen_rows<true>(table, kRowsASlot / 2, next);
      if (num_m > 1) {
        tile_load<7>(x.tile(item.m + 1, k), row_bytes);
        tile_multiply<1, 4, 7>();
      }
      if (num_m > 2) {
        tile_load<6>(x.tile(item.m + 2, k), row_bytes);
        tile_multiply<2, 4, 6>();
      }
      widen_rows<true>(table, kRowsASlot / 2, next);
      if (num_m > 3) {
        tile_load<7>(x.tile(item.m + 3, k), row_bytes);
        tile_multiply<3, 4, 7>();
      }
    }
  }
  const bool is_last = strip.end * kBlockTiles == x.num_k;
  store_strip_sums(is_last ? c : strip.sums, num_m);
  for (int64_t i = 0; is_last && i < num_m; ++i) {
    const View2<float> y = item.output(0, item.m + i);
    store_columns(c + i * kTileFloats, x.columns, y.cols, y);
  }
}

// --- E4M3 with other factors: sums of blocks ---

// Four tiles of C that wait to be taken times their block's factor and added to the sums.
struct ScaledSums {
  alignas(64) float c[4 * kTileFloats];
  float* sums = nullptr;  // of the first panel and tile of x; the second panel's are kPanelSums on
  float factor = 0;
  bool is_first = false;
  bool is_there[4] = {};
};
constexpr int64_t kPanelSums = kItemTiles * kTileFloats;

AMX_INLINE void add_scaled(const ScaledSums& from, int64_t tile, int64_t columns) {
  if (!from.is_there[tile]) return;
  const float* const c = from.c + tile * kTileFloats;
  float* const to = from.sums + tile / 2 * kPanelSums + tile % 2 * kTileFloats;
  const __m512 factor = _mm512_set1_ps(from.factor);
  for (int64_t i = 0; i < columns * kAmxRows; i += 16)
    _mm512_store_ps(to + i,
                    _mm512_fmadd_ps(_mm512_load_ps(c + i), factor,
                                    _mm512_maskz_load_ps(from.is_first ? 0 : 0xffff, to + i)));
}

// All of an item, 128 columns at a time. While the tile unit multiplies, the vector units widen the
// next block and add what the last products gave.
AMX_KERNEL void multiply_unscaled(const LinearItem& item) {
  WidenedBlock blocks[2];
  ScaledSums pending[2];
  alignas(64) float sums[kPanels * kPanelSums];
  const E4M3BitWidener table = e4m3_bit_widener();
  const float* const factors = item.factors();
  const int64_t columns = item.x.columns, num_m = item.m_end - item.m;
  const int64_t slots = ceil_div(num_m, 2) * kBlockTiles;
  const bool has_panel = item.num_rows > kAmxRows;
  int64_t step = 0;
  Widening next = start_widening(item, 0, blocks[0]);
  widen_rows<false>(table, next.num_left, next);
  for (int64_t block = 0; block * kQuantGroup < item.w.cols; ++block) {
    const WidenedBlock& w = blocks[block % 2];
    if ((block + 1) * kQuantGroup < item.w.cols)
      next = start_widening(item, (block + 1) * kQuantGroup, blocks[1 - block % 2]);
    const int64_t rows_a_slot = ceil_div(next.num_left, slots);
    for (int64_t t = 0; t < num_m; t += 2, ++step) {
      const ScaledSums& before = pending[1 - step % 2];
      const bool has_tile = t + 1 < num_m;
      clear_sums();
      for (int64_t i = 0; i < kBlockTiles; ++i) {
        const int64_t m = item.m + t, k = block * kBlockTiles + i;
        add_products({w.tiles[0][i], sizeof w.tiles[0][i][0]},
                     {w.tiles[1][i], sizeof w.tiles[1][i][0]}, has_panel, item.x.tile(m, k),
                     item.x.tile(m + has_tile, k), has_tile, item.x.row_bytes());
        add_scaled(before, i, columns);
        widen_rows<false>(table, rows_a_slot, next);
      }
      ScaledSums& now = pending[step % 2];
      store_sums(now.c, item.x.row_bytes(), has_panel, has_tile);
      now.sums = sums + t * kTileFloats;
      now.factor = factors[block];
      now.is_first = block == 0;
      for (int i = 0; i < 4; ++i)
        now.is_there[i] = (i / 2 == 0 || has_panel) && (i % 2 == 0 || has_tile);
    }
  }
  for (int i = 0; i < 4; ++i) add_scaled(pending[1 - step % 2], i, columns);
  for (int64_t panel = 0; panel * kAmxRows < item.num_rows; ++panel)
    for (int64_t t = 0; t < num_m; ++t) {
      const View2<float> y = item.output(panel, item.m + t);
      store_columns(sums + panel * kPanelSums + t * kTileFloats, columns, y.cols, y);
    }
}

}  // namespace

void multiply_e4m3(const LinearItem& item) {
  if (!are_powers_of_two(item.factors(), ceil_div(item.w.cols, kQuantGroup)))
    return multiply_unscaled(item);
  for (int64_t m = item.m; m < item.m_end; m += 2) multiply_scaled(item, m);
}

bool has_powers_of_two(const WeightView& w) {
  const int64_t factor_cols = ceil_div(w.cols, kQuantGroup), begin = w.first_row / kQuantGroup;
  const int64_t end = ceil_div(w.first_row + w.rows, kQuantGroup);
  return are_powers_of_two(w.scale_inv + begin * factor_cols, (end - begin) * factor_cols);
}

// Four tiles of x after four, so that they stay in the second cache while W goes by: where k is
// long, a part of it after the other.
void multiply_in_strips(const InputTiles& x, const WeightView& w, View2<float> y_MN) {
  static thread_local LineBuffer buffer;
  const int64_t num_blocks = x.num_k / kBlockTiles, all_m = ceil_div(y_MN.rows, kAmxCols);
  const int64_t num_parts = ceil_div(num_blocks, kMostStripBlocks);
  const int64_t part = ceil_div(num_blocks, num_parts);
  const int64_t first = w.first_row / kAmxRows;
  const int64_t num_items = ceil_div(w.first_row + w.rows, kAmxRows) - first;
  const int64_t item_sums = num_parts > 1 ? kStripTiles * kTileFloats : 0;
  float* const sums = buffer.reserve<float>(num_items * item_sums);
  for (int64_t m = 0; m < all_m; m += kStripTiles) {
    const int64_t m_end = std::min(m + kStripTiles, all_m);
    const int64_t work = (m_end - m) * kAmxCols * kAmxRows * part * kQuantGroup;
    for (int64_t begin = 0; begin < num_blocks; begin += part) {
      const int64_t end = std::min(begin + part, num_blocks);
      base::parallel_for(
          num_items, std::max<int64_t>(1, kMinWork / work), [&](int64_t at, int64_t at_end) {
            const TileShape shape(x.columns);
            for (; at < at_end; ++at)
              multiply_strip(item_of(x, w, y_MN, (first + at) * kAmxRows, kAmxRows, m, m_end),
                             {begin, end, sums + at * item_sums});
          });
    }
  }
}

#endif

}  // namespace fathom::kernels
