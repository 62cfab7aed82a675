#include "kernels/linear_bf16.h"

#include <algorithm>
#include <vector>

#include "base/parallel.h"
#include "kernels/bf16_octet.h"
#include "kernels/bf16_tile.h"
#include "kernels/fp8.h"
#include "kernels/tile.h"

namespace fathom::kernels {

#if FATHOM_HAS_BF16_KERNELS

namespace {

// W is multiplied by octets. More than four rows in a register would take more shuffles where one
// row of x must read W at the memory's speed, fewer would leave more sums to scale after each
// block.
constexpr int64_t kVectors = 4;
constexpr int64_t kPanelRows = kOctetRows;              // of W; divides a block of 128
constexpr int64_t kTileRows = 6;                        // of x: 24 sums in registers
constexpr int64_t kBlockOctets = kQuantGroup / kOctet;  // that share a factor
// Of x: up to eight are multiplied by W as it is read, and wait for W as long as one does. The sums
// and the block of columns of 66 stay in L1. For 264 a panel is packed once, and stays in L2.
constexpr int64_t kFewRows = 8;
constexpr int64_t kBlockRows = 66;
constexpr int64_t kItemRows = 4 * kBlockRows;
// Bytes ahead of what is read of W. Few rows of x take a row of W from end to end, and the next
// line of four streams; many take 128 columns of sixteen rows at a time, so that 512 bytes are two
// blocks of BF16 and four of E4M3.
constexpr int64_t kDotAhead = 2816;
// Whole panels are asked for from the second cache on: the first one's few buffers for misses, held
// for as long as memory takes, would let through 15 GB/s.
constexpr int64_t kStreamAhead = 4096;
constexpr int64_t kPackAhead = 512;
constexpr int64_t kGrainWork = 1 << 20;   // multiplications that are worth a thread
constexpr int64_t kSums = kVectors * 16;  // of a row of x and a panel

// x in bf16, each row zero behind its end up to whole blocks of 128 columns. Few rows lie one after
// another; of many their first blocks do, then their second: as parts of long rows they would fall
// on few sets of the first cache.
struct RoundedRows {
  uint16_t* data;
  int64_t row_stride, block_stride;

  bool are_few() const { return block_stride == kQuantGroup; }
  RoundedRows from(int64_t m) const { return {data + m * row_stride, row_stride, block_stride}; }
  const uint16_t* operator[](int64_t m) const { return data + m * row_stride; }
  uint16_t* block(int64_t k) const { return data + k / kQuantGroup * block_stride; }
};

RoundedRows rounded_rows(uint16_t* data, int64_t num_rows, int64_t padded) {
  if (num_rows <= kFewRows) return {data, padded, kQuantGroup};
  return {data, kQuantGroup, num_rows * kQuantGroup};
}

BF16_KERNEL void round_x_row(const float* x, int64_t count, const RoundedRows& out) {
  for (int64_t k = 0; k < count; k += kQuantGroup)
    round_row(x + k, std::min(count - k, kQuantGroup), kQuantGroup, out.block(k));
}

// Up to 16 rows of W as stored.
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
                               int64_t at, int64_t ahead) {
  const char* const p =
      static_cast<const char*>(data) + std::min(row, num_rows - 1) * row_bytes + at;
  const int64_t left = row_bytes - at;
  _mm_prefetch(p + ahead, _MM_HINT_T0);
  if (left >= 64) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi8(left <= 0 ? 0 : (__mmask64{1} << left) - 1, p);
}

// Calls use(octet, register) for vector v's octets from column k on, in order. Part p of vector v
// is row 4p + v: add_lanes then leaves the rows in order, and what a vector reads is followed in
// memory by what the next one does.
template <typename Use>
BF16_INLINE void for_each_octet(const BF16Rows& w, const E4M3Widener&, int64_t v, int64_t k,
                                int64_t num_octets, Use& use) {
  for (int64_t o = 0; o < num_octets; o += 4) {
    __m512i block[4];
    for (int64_t p = 0; p < 4; ++p)
      block[p] =
          load_bytes(w.data, w.num_rows, 2 * w.cols, 4 * p + v, 2 * (k + o * kOctet), use.ahead);
    transpose_parts(block);
    for (int64_t i = 0; i < 4; ++i) use(o + i, block[i]);
  }
}
template <typename Use>
BF16_INLINE void for_each_octet(const E4M3Rows& w, const E4M3Widener& table, int64_t v, int64_t k,
                                int64_t num_octets, Use& use) {
  for (int64_t o = 0; o < num_octets; o += 8) {
    __m512i block[4];
    for (int64_t p = 0; p < 4; ++p)
      block[p] = load_bytes(w.data, w.num_rows, w.cols, 4 * p + v, k + o * kOctet, use.ahead);
    transpose_parts(block);
    for (int64_t i = 0; i < 4; ++i) {
      __m512i wide[2];
      widen_e4m3_parts(table, block[i], wide);
      use(o + 2 * i, wide[0]);
      use(o + 2 * i + 1, wide[1]);
    }
  }
}

struct StoreOctet {
  uint16_t* out;
  int64_t ahead;
  BF16_INLINE void operator()(int64_t o, __m512i octet) const {
    _mm512_storeu_si512(out + o * kVectors * 32, octet);
  }
};

// A row of x times the rows of W that a register holds, block by block.
template <int kRows>
struct AddOctet {
  static constexpr int64_t ahead = kDotAhead;
  const RoundedRows& x;
  int64_t k = 0;
  __m512 sum[kRows];
  BF16_INLINE void operator()(int64_t o, __m512i octet) {
    for (int i = 0; i < kRows; ++i)
      sum[i] = dot_pairs(sum[i], broadcast_octet(x[i] + k + o * kOctet), octet);
  }
};

// In eights: as many as a register of bytes holds.
int64_t octets_from(int64_t k, int64_t cols) {
  return std::min(kBlockOctets, ceil_div(cols - k, 8 * kOctet) * 8);
}

// The panel's columns from k on as out [num_octets <= 16][4 vectors][32 bf16].
template <typename Rows>
BF16_KERNEL void pack_block(const Rows& w, int64_t k, int64_t num_octets, uint16_t* out) {
  const E4M3Widener table = e4m3_widener();
  // At a row's end, the same row of the next panel.
  const int64_t row_bytes = w.cols * sizeof(*w.data), at = k * sizeof(*w.data) + kPackAhead;
  const int64_t ahead = kPackAhead + (at < row_bytes ? 0 : (kPanelRows - 1) * row_bytes);
  for (int64_t v = 0; v < kVectors; ++v) {
    StoreOctet store{out + v * 32, ahead};
    for_each_octet(w, table, v, k, num_octets, store);
  }
}

// Vector v's rows of a panel of sixteen: v, v + 4, v + 8 and v + 12. The vectors one after another
// read four streams, each four rows long, and those of the next panel follow: what lies
// kStreamAhead further on that way is asked for early. (A prefetch straight ahead misses each
// panel's beginning.)
struct E4M3Streams {
  const uint8_t* row[4];
  int64_t left;     // bytes of each stream in this panel
  int64_t to_next;  // from its end to its beginning in the next

  BF16_INLINE E4M3Streams(const E4M3Rows& w, int64_t v) {
#pragma GCC unroll 4
    for (int64_t p = 0; p < 4; ++p) row[p] = w.data + (4 * p + v) * w.cols;
    left = (4 - v) * w.cols;
    to_next = (kPanelRows - 4) * w.cols;
  }

  // Columns k to k + 64 by octets, two in a part.
  BF16_INLINE void load(int64_t k, __m512i (&octets)[4]) const {
    const int64_t ahead = k + kStreamAhead + (k + kStreamAhead < left ? 0 : to_next);
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      _mm_prefetch(row[p] + ahead, _MM_HINT_T1);
      octets[p] = _mm512_loadu_si512(row[p] + k);
    }
    transpose_parts(octets);
  }
};

// How many of a panel's vectors few rows of x take side by side, and how many blocks of columns:
// the products of one row alone would each wait for the one before. (Four vectors read sixteen rows
// at once, which fall on one set of the first cache where they are 4,096 bytes long.)
template <int kRows, bool kIsScaled>
constexpr int kVectorsAtOnce = !kIsScaled && kRows <= 2 ? 2 : 1;
template <int kRows>
constexpr int kBlocksAtOnce = kRows == 1 ? 2 : 1;

// What is read kStreamAhead bytes after a row's column k, if each row is followed by the same one
// of the next panel.
struct NextPanels {
  int64_t cols, column, panel_numbers = 0;

  BF16_INLINE explicit NextPanels(int64_t cols)
      : cols(cols),
        column(kStreamAhead / 2 % cols),
        panel_numbers(kStreamAhead / 2 / cols * kPanelRows * cols) {}

  BF16_INLINE void advance(int64_t columns) {
    column += columns;
    if (column < cols) return;
    column -= cols;
    panel_numbers += kPanelRows * cols;
  }
};

// total[j][i] += row i of x times vector v + j's rows of a whole panel, as far as whole blocks of
// 64 columns go, in which x is padded; returns the column where they end.
template <int kRows, int kAtOnce>
BF16_INLINE int64_t dot_rows(const RoundedRows& x, const BF16Rows& w, const E4M3Widener&,
                             const float*, int64_t v, __m512 (&total)[kAtOnce][kRows]) {
  constexpr int64_t kColumns = 4 * kOctet;
  const int64_t end = w.cols / (2 * kColumns) * (2 * kColumns);
  NextPanels next(w.cols);
  for (int64_t k = 0; k < end; k += kColumns, next.advance(kColumns)) {
    __m512i octets[kAtOnce][4];
#pragma GCC unroll 2
    for (int j = 0; j < kAtOnce; ++j) {
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) {
        const uint16_t* const row = w.data + (4 * p + v + j) * w.cols;
        _mm_prefetch(row + next.panel_numbers + next.column, _MM_HINT_T1);
        octets[j][p] = _mm512_loadu_si512(row + k);
      }
      transpose_parts(octets[j]);
    }
#pragma GCC unroll 4
    for (int o = 0; o < 4; ++o)
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const __m512i input = broadcast_octet(x[i] + k + o * kOctet);
#pragma GCC unroll 2
        for (int j = 0; j < kAtOnce; ++j) total[j][i] = dot_pairs(total[j][i], input, octets[j][o]);
      }
  }
  return end;
}

// sum[b][i] = row i of x times the rows over the block from column k + 128 b on.
template <int kRows>
BF16_INLINE void dot_blocks(const RoundedRows& x, const E4M3Streams& rows, const E4M3Widener& table,
                            int64_t k, __m512 (&sum)[kBlocksAtOnce<kRows>][kRows]) {
  constexpr int kBlocks = kBlocksAtOnce<kRows>;
#pragma GCC unroll 2
  for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) sum[b][i] = _mm512_setzero_ps();
  for (const int64_t end = k + kQuantGroup; k < end; k += 8 * kOctet) {
    __m512i octets[kBlocks][4];
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) rows.load(k + b * kQuantGroup, octets[b]);
#pragma GCC unroll 4
    for (int o = 0; o < 4; ++o)
#pragma GCC unroll 2
      for (int b = 0; b < kBlocks; ++b) {
        __m512i wide[2];
        widen_e4m3_parts(table, octets[b][o], wide);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          const uint16_t* const input = x[i] + k + b * kQuantGroup + 2 * o * kOctet;
          sum[b][i] = dot_pairs(sum[b][i], broadcast_octet(input), wide[0]);
          sum[b][i] = dot_pairs(sum[b][i], broadcast_octet(input + kOctet), wide[1]);
        }
      }
  }
}

// The same over whole blocks of columns, as far as they go in kBlocksAtOnce.
template <int kRows>
BF16_INLINE int64_t dot_rows(const RoundedRows& x, const E4M3Rows& w, const E4M3Widener& table,
                             const float* factors, int64_t v, __m512 (&total)[1][kRows]) {
  constexpr int kBlocks = kBlocksAtOnce<kRows>;
  const E4M3Streams rows(w, v);
  int64_t k = 0;
  for (; k + kBlocks * kQuantGroup <= w.cols; k += kBlocks * kQuantGroup) {
    __m512 sum[kBlocks][kRows];
    dot_blocks<kRows>(x, rows, table, k, sum);
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i)
        total[0][i] =
            _mm512_fmadd_ps(sum[b][i], _mm512_set1_ps(factors[k / kQuantGroup + b]), total[0][i]);
  }
  return k;
}

// total[i] += row i of x times vector v's rows from column k on, whatever is missing.
template <int kRows, typename Rows>
BF16_INLINE void dot_rest(const RoundedRows& x, const Rows& w, const E4M3Widener& table,
                          const float* factors, int64_t v, int64_t k, __m512 (&total)[kRows]) {
  for (; k < w.cols; k += kQuantGroup) {
    AddOctet<kRows> add{x, k, {}};
    for (int i = 0; i < kRows; ++i) add.sum[i] = Rows::kIsScaled ? _mm512_setzero_ps() : total[i];
    for_each_octet(w, table, v, k, octets_from(k, w.cols), add);
    for (int i = 0; i < kRows; ++i)
      total[i] =
          Rows::kIsScaled
              ? _mm512_fmadd_ps(add.sum[i], _mm512_set1_ps(factors[k / kQuantGroup]), total[i])
              : add.sum[i];
  }
}

// sums [kRows][4][16] for few rows of x: W goes from memory to the products, rows from beginning to
// end, as the processor's own prefetching likes it.
template <int kRows, typename Rows>
BF16_KERNEL void dot_few(const RoundedRows& x, const Rows& w, const float* factors, float* sums) {
  constexpr int kAtOnce = kVectorsAtOnce<kRows, Rows::kIsScaled>;
  const E4M3Widener table = e4m3_widener();
  for (int64_t v = 0; v < kVectors; v += kAtOnce) {
    __m512 total[kAtOnce][kRows];
#pragma GCC unroll 4
    for (int j = 0; j < kAtOnce; ++j)
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) total[j][i] = _mm512_setzero_ps();
    int64_t k = 0;
    if (w.num_rows == kPanelRows) k = dot_rows(x, w, table, factors, v, total);
    for (int j = 0; j < kAtOnce; ++j) {
      if (k < w.cols) dot_rest(x, w, table, factors, v + j, k, total[j]);
      for (int i = 0; i < kRows; ++i)
        _mm512_storeu_ps(sums + (i * kVectors + v + j) * 16, total[j][i]);
    }
  }
}

template <typename Rows>
using DotFew = void (*)(const RoundedRows&, const Rows&, const float*, float*);
template <typename Rows>
constexpr DotFew<Rows> kDotFew[] = {dot_few<1, Rows>, dot_few<2, Rows>, dot_few<3, Rows>,
                                    dot_few<4, Rows>, dot_few<5, Rows>, dot_few<6, Rows>,
                                    dot_few<7, Rows>, dot_few<8, Rows>};
static_assert(std::size(kDotFew<BF16Rows>) == kFewRows);

BF16_INLINE __m512 load_or_zero(bool is_zero, const float* p) {
  return _mm512_maskz_loadu_ps(is_zero ? 0 : 0xffff, p);
}

// sums [kRows][4][16] go on over a block or begin with the first: with a factor, the block's own
// sums times it are added.
template <int kRows, bool kIsScaled>
BF16_KERNEL void add_block(const uint16_t* x, const uint16_t* w, int64_t num_octets, float factor,
                           bool is_first, float* sums) {
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[i][v] = load_or_zero(kIsScaled || is_first, sums + (i * kVectors + v) * 16);
  for (int64_t o = 0; o < num_octets; ++o) {
    __m512i weights[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) weights[v] = _mm512_loadu_si512(w + (o * kVectors + v) * 32);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const __m512i input = broadcast_octet(x + i * kQuantGroup + o * kOctet);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[i][v] = dot_pairs(sum[i][v], input, weights[v]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* const to = sums + (i * kVectors + v) * 16;
      _mm512_storeu_ps(to, kIsScaled ? _mm512_fmadd_ps(sum[i][v], _mm512_set1_ps(factor),
                                                       load_or_zero(is_first, to))
                                     : sum[i][v]);
    }
}

using AddBlock = void (*)(const uint16_t*, const uint16_t*, int64_t, float, bool, float*);
template <bool kIsScaled>
constexpr AddBlock kAddBlock[] = {add_block<1, kIsScaled>, add_block<2, kIsScaled>,
                                  add_block<3, kIsScaled>, add_block<4, kIsScaled>,
                                  add_block<5, kIsScaled>, add_block<6, kIsScaled>};

// y[0..num_cols) from a row's sums.
BF16_KERNEL void store_sums(const float* sums, int64_t num_cols, float* y) {
  __m512 v[kVectors];
  for (int i = 0; i < kVectors; ++i) v[i] = _mm512_loadu_ps(sums + i * 16);
  _mm512_mask_storeu_ps(y, first_lanes(num_cols), add_lanes(v));
}

// One panel of W for rows of x: the first of them pack its blocks, the others find them. factors:
// of the blocks of columns.
template <typename Rows>
void multiply_panel(const RoundedRows& x, const Rows& w, const float* factors, View2<float> y) {
  alignas(64) float sums[kBlockRows * kSums];
  if (x.are_few()) {
    kDotFew<Rows>[y.rows - 1](x, w, factors, sums);
    for (int64_t m = 0; m < y.rows; ++m) store_sums(sums + m * kSums, y.cols, y[m]);
    return;
  }
  static thread_local LineBuffer buffer;
  const bool keeps_blocks = y.rows > kBlockRows;
  auto* const packed = buffer.reserve<uint16_t>(
      kPanelRows * (keeps_blocks ? round_up(w.cols, kQuantGroup) : kQuantGroup));
  for (int64_t first = 0; first < y.rows; first += kBlockRows) {
    const int64_t num_rows = std::min(kBlockRows, y.rows - first);
    for (int64_t k = 0; k < w.cols; k += kQuantGroup) {
      const int64_t num_octets = octets_from(k, w.cols);
      uint16_t* const block = packed + (keeps_blocks ? kPanelRows * k : 0);
      if (first == 0) pack_block(w, k, num_octets, block);
      for (int64_t m = 0; m < num_rows; m += kTileRows)
        kAddBlock<Rows::kIsScaled>[std::min(kTileRows, num_rows - m) - 1](
            x.block(k) + (first + m) * kQuantGroup, block, num_octets,
            Rows::kIsScaled ? factors[k / kQuantGroup] : 1.0f, k == 0, sums + m * kSums);
    }
    for (int64_t m = 0; m < num_rows; ++m) store_sums(sums + m * kSums, y.cols, y[first + m]);
  }
}

// y = x W for one row of x: four rows of W at a time are added to all sums, so that W is read from
// end to end.
constexpr int64_t kRowsAtOnce = 4;
constexpr int64_t kSumRows = 256;  // after which gemm, whose bits these are, begins a new sum
constexpr int kRowVectors = kQuantGroup / 16;  // of sums: columns that share a factor

// Thirty-two bf16 in order, in f32.
BF16_INLINE void widen_bf16(__m512i numbers, __m512* out) {
  const __m256i halves[] = {_mm512_castsi512_si256(numbers), _mm512_extracti64x4_epi64(numbers, 1)};
  for (int i = 0; i < 2; ++i)
    out[i] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves[i]), 16));
}

// A row's block of 128 columns from `at` on in f32, zeros behind its end.
struct BF16RowWidener {
  BF16_INLINE static BF16RowWidener make() { return {}; }
  BF16_INLINE void widen(const WeightView& w, int64_t row, int64_t at,
                         __m512 (&out)[kRowVectors]) const {
#pragma GCC unroll 4
    for (int i = 0; i < kRowVectors / 2; ++i)
      widen_bf16(load_bytes(w.data, row + 1, 2 * w.cols, row, 2 * at + 64 * i, kDotAhead),
                 out + 2 * i);
  }
};

struct E4M3RowWidener {
  E4M3Widener table;

  BF16_INLINE static E4M3RowWidener make() { return {e4m3_widener()}; }
  BF16_INLINE void widen(const WeightView& w, int64_t row, int64_t at,
                         __m512 (&out)[kRowVectors]) const {
    const __m512 factor = _mm512_set1_ps(
        w.scale_inv[row / kQuantGroup * ceil_div(w.cols, kQuantGroup) + at / kQuantGroup]);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512i pairs[2];
      widen_e4m3(table, load_bytes(w.data, row + 1, w.cols, row, at + 64 * half, kDotAhead), pairs);
      widen_bf16(pairs[0], out + 4 * half);
      widen_bf16(pairs[1], out + 4 * half + 2);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kRowVectors; ++v) out[v] *= factor;
  }
};

// sums += x[i] * row i of W for `num_rows` rows, in order.
template <typename Widener>
BF16_INLINE void add_rows(const Widener& widener, const float* x, const WeightView& w, int64_t row,
                          int64_t num_rows, float* sums) {
  for (int64_t at = 0; at < w.cols; at += kQuantGroup) {
    __m512 sum[kRowVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kRowVectors; ++v) sum[v] = _mm512_load_ps(sums + at + 16 * v);
    for (int64_t i = 0; i < num_rows; ++i) {
      __m512 value[kRowVectors];
      widener.widen(w, row + i, at, value);
#pragma GCC unroll 8
      for (int v = 0; v < kRowVectors; ++v) sum[v] += _mm512_set1_ps(x[i]) * value[v];
    }
#pragma GCC unroll 8
    for (int v = 0; v < kRowVectors; ++v) _mm512_store_ps(sums + at + 16 * v, sum[v]);
  }
}

// sums: as many as y has, up to whole blocks of 128.
template <typename Widener>
BF16_KERNEL void sum_rows(const float* x, const WeightView& w, float* sums, float* y) {
  const Widener widener = Widener::make();
  for (int64_t n = 0; n < w.rows; n += kSumRows) {
    const int64_t end = std::min(n + kSumRows, w.rows);
    std::fill_n(sums, round_up(w.cols, kQuantGroup), 0.0f);
    for (int64_t i = n; i < end; i += kRowsAtOnce)
      add_rows(widener, x + i, w, w.first_row + i, std::min(kRowsAtOnce, end - i), sums);
    for (int64_t k = 0; k < w.cols; ++k) y[k] = n > 0 ? y[k] + sums[k] : sums[k];
  }
}

}  // namespace

void linear_transposed_row(const float* x_N, const WeightView& w, float* y_K) {
  CHECK(w.format == WeightFormat::kBF16 || w.format == WeightFormat::kE4M3);
  static thread_local LineBuffer buffer;
  auto* const sums = buffer.reserve<float>(round_up(w.cols, kQuantGroup));
  const auto sum =
      w.format == WeightFormat::kBF16 ? sum_rows<BF16RowWidener> : sum_rows<E4M3RowWidener>;
  sum(x_N, w, sums, y_K);
}

namespace {

// A product, and its items among those of all: blocks of rows of x times panels of W, which are cut
// at multiples of 16 of the whole matrix, whose rows share their factors.
struct ItemRange {
  const LinearProduct* product;
  int64_t x_begin, x_stride;  // of its rounded rows among those of all
  int64_t first_panel, num_panels;
  int64_t begin, end;

  RoundedRows rounded_x(uint16_t* rounded) const {
    return rounded_rows(rounded + x_begin, product->x_MK.rows, x_stride);
  }

  void multiply(uint16_t* rounded, int64_t at) const {
    const auto& [x_MK, w, y_MN] = *product;
    const int64_t m = at / num_panels * kItemRows, panel = first_panel + at % num_panels;
    const int64_t row = std::max(panel * kPanelRows, w.first_row);
    const int64_t num_w = std::min((panel + 1) * kPanelRows, w.first_row + w.rows) - row;
    const View2<float> y(y_MN[m] + (row - w.first_row), std::min(kItemRows, x_MK.rows - m), num_w,
                         y_MN.stride);
    const auto rows_of = [&](const auto* data) { return data + row * w.cols; };
    const RoundedRows x = rounded_x(rounded).from(m);
    if (w.format == WeightFormat::kBF16)
      multiply_panel(x, BF16Rows{rows_of(static_cast<const uint16_t*>(w.data)), num_w, w.cols},
                     nullptr, y);
    else
      multiply_panel(x, E4M3Rows{rows_of(static_cast<const uint8_t*>(w.data)), num_w, w.cols},
                     w.scale_inv + row / kQuantGroup * (x_stride / kQuantGroup), y);
  }
};

int64_t grain_of(int64_t work) { return std::max<int64_t>(1, kGrainWork / work); }

void round_rows(View2<const float> x_MK, const RoundedRows& out) {
  base::parallel_for(x_MK.rows, grain_of(128 * x_MK.cols), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) round_x_row(x_MK[m], x_MK.cols, out.from(m));
  });
}

// Of all products together, per item.
int64_t mean_work(std::span<const ItemRange> ranges) {
  int64_t work = 0;
  for (const ItemRange& range : ranges)
    work += std::clamp(range.product->x_MK.rows, kFewRows, kItemRows) * kPanelRows *
            range.product->w_NK.cols * (range.end - range.begin);
  return std::max<int64_t>(1, work / ranges.back().end);
}

}  // namespace

void linear_bf16(std::span<const LinearProduct> products) {
  static thread_local LineBuffer buffer;
  static thread_local std::vector<ItemRange> ranges;
  ranges.clear();
  int64_t num_items = 0, size = 0;
  for (const LinearProduct& product : products) {
    const auto& [x_MK, w, y_MN] = product;
    if (x_MK.rows == 0 || w.rows == 0) continue;
    const int64_t stride = round_up(w.cols, kQuantGroup);
    const bool shares_x = !ranges.empty() && share_input(*ranges.back().product, product);
    const int64_t x_begin = shares_x ? ranges.back().x_begin : size;
    if (!shares_x) size += x_MK.rows * stride;
    const int64_t first = w.first_row / kPanelRows;
    const int64_t num_panels = ceil_div(w.first_row + w.rows, kPanelRows) - first;
    const int64_t end = num_items + num_panels * ceil_div(x_MK.rows, kItemRows);
    ranges.push_back({&product, x_begin, stride, first, num_panels, num_items, end});
    num_items = end;
  }
  if (ranges.empty()) return;
  auto* const rounded = buffer.reserve<uint16_t>(size);
  int64_t num_rounded = 0;
  for (const ItemRange& range : ranges) {
    if (range.x_begin < num_rounded) continue;  // the product's before
    round_rows(range.product->x_MK, range.rounded_x(rounded));
    num_rounded = range.x_begin + range.product->x_MK.rows * range.x_stride;
  }
  const std::span<const ItemRange> all = ranges;
  base::parallel_for(num_items, grain_of(mean_work(all)), [=](int64_t begin, int64_t end) {
    const auto* range = &all.front();
    for (int64_t at = begin; at < end; ++at) {
      while (at >= range->end) ++range;
      range->multiply(rounded, at - range->begin);
    }
  });
}

#else

void linear_transposed_row(const float*, const WeightView&, float*) {
  CHECK(false, "no AVX512-BF16: ask has_bf16_dot() first");
}
void linear_bf16(std::span<const LinearProduct>) {
  CHECK(false, "no AVX512-BF16: ask has_bf16_dot() first");
}

#endif

}  // namespace fathom::kernels
