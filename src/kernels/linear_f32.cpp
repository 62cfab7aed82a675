#include "kernels/linear_f32.h"

#include <algorithm>
#include <span>
#include <vector>

#include "base/parallel.h"
#include "kernels/fp8.h"
#include "kernels/tile.h"

namespace fathom::kernels {
namespace {

// linear: a tile of 4 rows of x by 3 of W keeps 12 sums, 3 weights and 1 input in 16 registers.
constexpr int64_t kTileM = 4;
constexpr int64_t kTileN = 3;
// One row of x: six sums, so that none waits for its last product.
constexpr int64_t kRowTileN = 6;
// Rows of W used (and widened) at once: at K = 256 a panel stays in a 32 KiB L1 cache.
constexpr int64_t kPanelN = 24;
constexpr int64_t kBlockM = 256;

// Element by element: for `= {}` GCC fills the array in memory with `rep stos`, a quarter of the
// tile's time.
template <int kRows, int kCols>
FATHOM_INLINE void zero(F32x8 (&sum)[kRows][kCols]) {
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kCols; ++j) sum[i][j] = F32x8{};
}

// Rows of W as the dot products read them: eight values of row j from column k on.
struct F32Rows {
  const float* data;
  int64_t stride;
  F32x8 at(int64_t j, int64_t k) const { return load(data + j * stride + k); }
  F32x8 partial(int64_t j, int64_t k, int64_t count) const {
    return load_partial(data + j * stride + k, count);
  }
  F32Rows from(int64_t j) const { return {data + j * stride, stride}; }
};
struct BF16Rows {
  const uint16_t* data;
  int64_t stride;
  F32x8 at(int64_t j, int64_t k) const { return load_bf16(data + j * stride + k); }
  F32x8 partial(int64_t j, int64_t k, int64_t count) const {
    uint16_t bits[kLanes] = {};
    std::memcpy(bits, data + j * stride + k, count * sizeof *bits);
    return load_bf16(bits);
  }
  BF16Rows from(int64_t j) const { return {data + j * stride, stride}; }
};

// sum[i][j] += the products of the columns up to k_size, as far as they are whole vectors.
template <int kRows, int kCols, typename Rows>
FATHOM_INLINE void add_products(const float* x, int64_t x_stride, Rows w, int64_t k_size,
                                F32x8 (&sum)[kRows][kCols]) {
  for (int64_t k = 0; k + kLanes <= k_size; k += kLanes) {
    F32x8 weight[kCols];
    for (int j = 0; j < kCols; ++j) weight[j] = w.at(j, k);
    for (int i = 0; i < kRows; ++i) {
      const F32x8 input = load(x + i * x_stride + k);
      for (int j = 0; j < kCols; ++j) sum[i][j] += input * weight[j];
    }
  }
}

template <int kRows, int kCols, typename Rows>
FATHOM_INLINE void dot_tile(const float* x, int64_t x_stride, Rows w, int64_t k_size, float* y,
                            int64_t y_stride) {
  F32x8 sum[kRows][kCols];
  zero<kRows, kCols>(sum);
  add_products(x, x_stride, w, k_size, sum);
  const int64_t k = k_size / kLanes * kLanes;
  if (k < k_size) {
    for (int i = 0; i < kRows; ++i) {
      const F32x8 input = load_partial(x + i * x_stride + k, k_size - k);
      for (int j = 0; j < kCols; ++j) {
        // Not to be fused with the sum, which the compiler does for some sizes of a tile only: a
        // row's bits would depend on the rows beside.
        F32x8 product = input * w.partial(j, k, k_size - k);
        asm("" : "+m"(product));
        sum[i][j] += product;
      }
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kCols; ++j) y[i * y_stride + j] = horizontal_sum(sum[i][j]);
}

template <int kRows, typename Rows>
FATHOM_INLINE void dot_rows(const float* x, int64_t x_stride, Rows w, int64_t num_w, int64_t k_size,
                            float* y, int64_t y_stride) {
  constexpr int kCols = kRows == 1 ? kRowTileN : kTileN;
  int64_t n = 0;
  for (; n + kCols <= num_w; n += kCols)
    dot_tile<kRows, kCols>(x, x_stride, w.from(n), k_size, y + n, y_stride);
  for (; n < num_w; ++n) dot_tile<kRows, 1>(x, x_stride, w.from(n), k_size, y + n, y_stride);
}

template <typename Rows>
FATHOM_INLINE void dot_all(View2<const float> x_MK, Rows w, int64_t num_w, float* y,
                           int64_t y_stride) {
  const int64_t k_size = x_MK.cols;
  int64_t m = 0;
  for (; m + kTileM <= x_MK.rows; m += kTileM)
    dot_rows<kTileM>(x_MK[m], x_MK.stride, w, num_w, k_size, y + m * y_stride, y_stride);
  for (; m < x_MK.rows; ++m)
    dot_rows<1>(x_MK[m], x_MK.stride, w, num_w, k_size, y + m * y_stride, y_stride);
}

// y[M, num_w] for contiguous f32 rows of W.
KERNEL void dot_panel(View2<const float> x_MK, const float* w, int64_t num_w, float* y,
                      int64_t y_stride) {
  dot_all(x_MK, F32Rows{w, x_MK.cols}, num_w, y, y_stride);
}

// The same bits from rows as they are stored, which pays where few rows of x share them.
KERNEL void dot_panel_bf16(View2<const float> x_MK, BF16Rows w, int64_t num_w, float* y,
                           int64_t y_stride) {
  dot_all(x_MK, w, num_w, y, y_stride);
}

// Products with e4m3 rows, which have one factor for each 128 columns of 128 rows. Conversion is
// what a product with one row of x waits for, so it is made short: a byte shifted into an f32's top
// is its number * 2^-120, and shifts and masks alone put every fourth byte of a register there.
// That takes the columns of each 32 in another order, so x is brought into the same order
// beforehand, times 2^64 to keep the products from underflowing, and for each block of rows times
// their factors. What is summed is then the same in the same order whether W is read as stored (few
// rows of x) or widened first (many).
constexpr float kInputScale = 0x1p64f;
constexpr float kOutputScale = 0x1p56f;  // of a sum: undoes both
constexpr int64_t kGroup = 4 * kLanes;

// Where lane `lane` of the group's vector `part` stands in order.
constexpr int64_t column_of(int64_t part, int64_t lane) { return 4 * lane + part; }

// In place.
void order_inputs(float* x, int64_t count) {
  int64_t k = 0;
  for (; k + kGroup <= count; k += kGroup) {
    float group[kGroup];
    std::copy_n(x + k, kGroup, group);
    for (int64_t part = 0; part < 4; ++part)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        x[k + part * kLanes + lane] = group[column_of(part, lane)] * kInputScale;
  }
  for (; k < count; ++k) x[k] *= kInputScale;
}

// A group of 32, in the order of column_of.
FATHOM_INLINE void load_group(const uint8_t* p, F32x8 (&out)[4]) {
#if defined(__AVX2__)
  I16x16 words;
  std::memcpy(&words, p, sizeof words);
  // Both bytes of each word where the upper one stands, shifted by the four bits that an f32's
  // exponent is longer; the mask drops the copies of the sign.
  const I32x8 upper = std::bit_cast<I32x8>(words >> 4);
  const I32x8 lower = std::bit_cast<I32x8>((words << 8) >> 4);
  const I32x8 kept = I32x8{} + static_cast<int32_t>(0x87f00000);
  out[0] = std::bit_cast<F32x8>(lower << 16 & kept);
  out[1] = std::bit_cast<F32x8>(upper << 16 & kept);
  out[2] = std::bit_cast<F32x8>(lower & kept);
  out[3] = std::bit_cast<F32x8>(upper & kept);
#else
  for (int part = 0; part < 4; ++part)
    for (int64_t lane = 0; lane < kLanes; ++lane)
      out[part][lane] = from_e4m3(p[column_of(part, lane)]) * 0x1p-120f;
#endif
}

// ordered[k] times the factor of k's block of columns.
KERNEL void scale_blocks(const float* ordered, int64_t count, const float* factors, float* out) {
  for (int64_t k = 0; k < count; k += kQuantGroup) {
    const float factor = factors[k / kQuantGroup];
    for (int64_t i = k; i < std::min(k + kQuantGroup, count); ++i) out[i] = ordered[i] * factor;
  }
}

struct E4M3Rows {
  const uint8_t* bits;
  int64_t stride;
};

FATHOM_INLINE void widen_groups(const uint8_t* bits, int64_t count, float* out) {
  for (int64_t k = 0; k + kGroup <= count; k += kGroup) {
    F32x8 group[4];
    load_group(bits + k, group);
    for (int part = 0; part < 4; ++part) store(out + k + part * kLanes, group[part]);
  }
}

// y[M, num_w] for a few rows of x, weights as stored.
template <int kRows, int kCols>
FATHOM_INLINE void dot_stored_tile(const float* x, int64_t x_stride, const E4M3Rows& w, int64_t j0,
                                   int64_t k_size, float* y, int64_t y_stride) {
  F32x8 sum[kRows][kCols];
  zero<kRows, kCols>(sum);
  for (int64_t k = 0; k + kGroup <= k_size; k += kGroup) {
    for (int j = 0; j < kCols; ++j) {
      F32x8 weight[4];
      const uint8_t* const bits = w.bits + (j0 + j) * w.stride + k;
      __builtin_prefetch(bits + kCols * w.stride, 0, 2);  // what is read after this tile
      load_group(bits, weight);
      for (int i = 0; i < kRows; ++i)
        for (int part = 0; part < 4; ++part)
          sum[i][j] += load(x + i * x_stride + k + part * kLanes) * weight[part];
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kCols; ++j)
      y[i * y_stride + j0 + j] = horizontal_sum(sum[i][j]) * kOutputScale;
}

template <int kRows>
FATHOM_INLINE void dot_stored_rows(const float* x, int64_t x_stride, const E4M3Rows& w,
                                   int64_t num_w, int64_t k_size, float* y, int64_t y_stride) {
  constexpr int kCols = kRows == 1 ? kRowTileN : kTileN;
  int64_t n = 0;
  for (; n + kCols <= num_w; n += kCols)
    dot_stored_tile<kRows, kCols>(x, x_stride, w, n, k_size, y, y_stride);
  if (kRows == 1 && n + 4 <= num_w) {  // what is left of a whole item
    dot_stored_tile<kRows, 4>(x, x_stride, w, n, k_size, y, y_stride);
    n += 4;
  }
  for (; n < num_w; ++n) dot_stored_tile<kRows, 1>(x, x_stride, w, n, k_size, y, y_stride);
}

KERNEL void dot_panel_e4m3(View2<const float> x_MK, const E4M3Rows& w, int64_t num_w, float* y,
                           int64_t y_stride) {
  int64_t m = 0;
  for (; m + kTileM <= x_MK.rows; m += kTileM)
    dot_stored_rows<kTileM>(x_MK[m], x_MK.stride, w, num_w, x_MK.cols, y + m * y_stride, y_stride);
  for (; m < x_MK.rows; ++m)
    dot_stored_rows<1>(x_MK[m], x_MK.stride, w, num_w, x_MK.cols, y + m * y_stride, y_stride);
}

// Many rows of x: columns, rows of x and rows of W at once. Their sums, the scaled x and the
// widened W stay in an L2 cache together.
constexpr int64_t kChunkK = 4 * kQuantGroup;
constexpr int64_t kChunkM = 64;
constexpr int64_t kItemRows = 64;  // divides 128: one factor a block of columns

// sums[i][j] (eight lanes each, rows of kItemRows) go on over a chunk's columns.
template <int kRows, int kCols>
FATHOM_INLINE void add_chunk_tile(const float* x, int64_t x_stride, F32Rows w, int64_t j0,
                                  int64_t k_size, float* sums) {
  F32x8 sum[kRows][kCols];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kCols; ++j) sum[i][j] = load(sums + (i * kItemRows + j0 + j) * kLanes);
  add_products(x, x_stride, w.from(j0), k_size / kGroup * kGroup, sum);
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kCols; ++j) store(sums + (i * kItemRows + j0 + j) * kLanes, sum[i][j]);
}

template <int kRows>
FATHOM_INLINE void add_chunk_rows(const float* x, int64_t x_stride, F32Rows w, int64_t num_w,
                                  int64_t k_size, float* sums) {
  int64_t n = 0;
  for (; n + kTileN <= num_w; n += kTileN)
    add_chunk_tile<kRows, kTileN>(x, x_stride, w, n, k_size, sums);
  for (; n < num_w; ++n) add_chunk_tile<kRows, 1>(x, x_stride, w, n, k_size, sums);
}

KERNEL void add_chunk(View2<const float> x_MK, F32Rows w, int64_t num_w, float* sums) {
  int64_t m = 0;
  for (; m + kTileM <= x_MK.rows; m += kTileM)
    add_chunk_rows<kTileM>(x_MK[m], x_MK.stride, w, num_w, x_MK.cols,
                           sums + m * kItemRows * kLanes);
  for (; m < x_MK.rows; ++m)
    add_chunk_rows<1>(x_MK[m], x_MK.stride, w, num_w, x_MK.cols, sums + m * kItemRows * kLanes);
}

KERNEL void widen_panel_groups(const uint8_t* bits, int64_t stride, int64_t num_rows, int64_t count,
                               float* out, int64_t out_stride) {
  for (int64_t j = 0; j < num_rows; ++j)
    widen_groups(bits + j * stride, count, out + j * out_stride);
}

// Below a million multiplications a thread, waking it costs more than it brings, and far more where
// something else wants its core.
int64_t grain_of(int64_t work) {
  return std::max<int64_t>(1, (1 << 20) / std::max<int64_t>(work, 1));
}

// Rows of W that share their factors, for a block of x's rows (ordered).
struct E4M3Item {
  View2<const float> x_MK;
  E4M3Rows w;
  int64_t num_w;
  const float* factors;  // of the blocks of columns
};

// Adds the columns beyond whole groups, in order.
void add_rest(const E4M3Item& item, float* y, int64_t y_stride) {
  const int64_t cols = item.x_MK.cols, begin = cols / kGroup * kGroup;
  if (begin == cols) return;
  const float factor = item.factors[begin / kQuantGroup];
  for (int64_t m = 0; m < item.x_MK.rows; ++m)
    for (int64_t n = 0; n < item.num_w; ++n)
      for (int64_t k = begin; k < cols; ++k)
        y[m * y_stride + n] += item.x_MK[m][k] * factor *
                               (from_e4m3(item.w.bits[n * item.w.stride + k]) * 0x1p-120f) *
                               kOutputScale;
}

void few_rows(const E4M3Item& item, float* y, int64_t y_stride) {
  static thread_local std::vector<float> scaled;
  const int64_t rows = item.x_MK.rows, cols = item.x_MK.cols;
  scaled.resize(rows * cols);
  for (int64_t m = 0; m < rows; ++m)
    scale_blocks(item.x_MK[m], cols, item.factors, scaled.data() + m * cols);
  dot_panel_e4m3({scaled.data(), rows, cols}, item.w, item.num_w, y, y_stride);
  add_rest(item, y, y_stride);
}

void many_rows(const E4M3Item& item, float* y, int64_t y_stride) {
  static thread_local std::vector<float> scaled, wide, sums;
  const int64_t rows = item.x_MK.rows, cols = item.x_MK.cols;
  scaled.resize(rows * kChunkK);
  wide.resize(kPanelN * kChunkK);
  sums.assign(rows * kItemRows * kLanes, 0.0f);
  for (int64_t k = 0; k < cols; k += kChunkK) {
    const int64_t count = std::min(kChunkK, cols - k);
    for (int64_t m = 0; m < rows; ++m)
      scale_blocks(item.x_MK[m] + k, count, item.factors + k / kQuantGroup,
                   scaled.data() + m * count);
    for (int64_t n = 0; n < item.num_w; n += kPanelN) {
      const int64_t num_w = std::min(kPanelN, item.num_w - n);
      widen_panel_groups(item.w.bits + n * item.w.stride + k, item.w.stride, num_w, count,
                         wide.data(), kChunkK);
      add_chunk({scaled.data(), rows, count}, {wide.data(), kChunkK}, num_w,
                sums.data() + n * kLanes);
    }
  }
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t n = 0; n < item.num_w; ++n)
      y[m * y_stride + n] =
          horizontal_sum(load(sums.data() + (m * kItemRows + n) * kLanes)) * kOutputScale;
  add_rest(item, y, y_stride);
}

// A product, its x as the items take it (rounded if asked for; for E4M3 in order), and its items
// among those of all: blocks of rows of x times panels of W, which for E4M3 are cut at multiples of
// kItemRows of the whole matrix.
struct ItemRange {
  const LinearProduct* product;
  View2<const float> x_MK;
  int64_t num_panels = 0, begin = 0, end = 0;

  bool is_e4m3() const { return product->w_NK.format == WeightFormat::kE4M3; }
  int64_t block_rows() const { return is_e4m3() ? kChunkM : kBlockM; }
  int64_t panel_rows() const { return is_e4m3() ? kItemRows : kPanelN; }
  // The first panel's number among those of the whole matrix, where it matters.
  int64_t first_panel() const { return is_e4m3() ? product->w_NK.first_row / kItemRows : 0; }

  int64_t work() const {
    return std::min(x_MK.rows, block_rows()) * panel_rows() * x_MK.cols * (end - begin);
  }

  void multiply(int64_t at) const {
    const int64_t m = at / num_panels * block_rows(), panel = at % num_panels;
    const auto x = x_MK.slice_rows(m, std::min(m + block_rows(), x_MK.rows));
    is_e4m3() ? multiply_e4m3(x, m, panel) : multiply_panel(x, m, panel);
  }

 private:
  void multiply_e4m3(View2<const float> x, int64_t m, int64_t panel) const {
    const auto& [_, w, y_MN] = *product;
    const int64_t first = (first_panel() + panel) * kItemRows;
    const int64_t row = std::max(first, w.first_row);
    const int64_t row_end = std::min(first + kItemRows, w.first_row + w.rows);
    const int64_t num_blocks = (w.cols + kQuantGroup - 1) / kQuantGroup;
    const E4M3Item item{x,
                        {static_cast<const uint8_t*>(w.data) + row * w.cols, w.cols},
                        row_end - row,
                        w.scale_inv + row / kQuantGroup * num_blocks};
    const auto multiply_rows = x_MK.rows <= kTileM ? few_rows : many_rows;
    multiply_rows(item, y_MN[m] + (row - w.first_row), y_MN.stride);
  }

  void multiply_panel(View2<const float> x, int64_t m, int64_t panel) const {
    static thread_local std::vector<float> widened;
    const auto& [_, w, y_MN] = *product;
    const int64_t n = panel * kPanelN, n_end = std::min(n + kPanelN, w.rows);
    const int64_t offset = (w.first_row + n) * w.cols;
    float* const y = y_MN[m] + n;
    if (x_MK.rows <= kTileM && w.format == WeightFormat::kBF16)
      return dot_panel_bf16(x, {static_cast<const uint16_t*>(w.data) + offset, w.cols}, n_end - n,
                            y, y_MN.stride);
    const float* rows = static_cast<const float*>(w.data) + offset;
    if (w.format != WeightFormat::kF32) {
      widened.resize(kPanelN * w.cols);
      widen_rows(w, n, n_end, widened.data());
      rows = widened.data();
    }
    dot_panel(x, rows, n_end - n, y, y_MN.stride);
  }
};

// Whether x has to be copied for the product.
bool is_prepared(const ItemRange& range, bool round) { return round || range.is_e4m3(); }

// Sets each range's x, one copy for all that take the same in the same way.
void prepare_inputs(std::span<ItemRange> ranges, bool round) {
  static thread_local std::vector<float> copies;
  int64_t size = 0;
  for (const ItemRange& range : ranges)
    if (is_prepared(range, round)) size += range.x_MK.rows * range.x_MK.cols;
  copies.resize(size);
  float* next = copies.data();
  for (size_t i = 0; i < ranges.size(); ++i) {
    const View2<const float> x = ranges[i].x_MK;
    if (!is_prepared(ranges[i], round)) continue;
    if (i > 0 && share_input(*ranges[i - 1].product, *ranges[i].product) &&
        ranges[i - 1].is_e4m3() == ranges[i].is_e4m3()) {
      ranges[i].x_MK = ranges[i - 1].x_MK;
      continue;
    }
    const View2<float> copy(next, x.rows, x.cols);
    next += x.rows * x.cols;
    const bool is_e4m3 = ranges[i].is_e4m3();
    base::parallel_for(x.rows, grain_of(4 * x.cols), [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) {
        const std::span<float> row(copy[m], x.cols);
        std::copy_n(x[m], x.cols, copy[m]);
        if (round) round_to_bf16(row, row);
        if (is_e4m3) order_inputs(copy[m], x.cols);
      }
    });
    ranges[i].x_MK = copy;
  }
}

}  // namespace

void linear_f32(std::span<const LinearProduct> products, bool round) {
  static thread_local std::vector<ItemRange> ranges;
  ranges.clear();
  int64_t num_items = 0, work = 0;
  for (const LinearProduct& product : products) {
    ItemRange range{&product, product.x_MK};
    const int64_t last_row = product.w_NK.rows + (range.is_e4m3() ? product.w_NK.first_row : 0);
    range.num_panels = ceil_div(last_row, range.panel_rows()) - range.first_panel();
    range.begin = num_items;
    range.end = num_items += range.num_panels * ceil_div(range.x_MK.rows, range.block_rows());
    if (range.begin == range.end) continue;
    work += range.work();
    ranges.push_back(range);
  }
  if (num_items == 0) return;
  prepare_inputs(ranges, round);
  const std::span<const ItemRange> all = ranges;
  base::parallel_for(num_items, grain_of(work / num_items), [=](int64_t begin, int64_t end) {
    const ItemRange* range = all.data();
    for (int64_t at = begin; at < end; ++at) {
      while (at >= range->end) ++range;
      range->multiply(at - range->begin);
    }
  });
}

}  // namespace fathom::kernels
