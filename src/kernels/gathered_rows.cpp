#include "kernels/gathered_rows.h"

#include <algorithm>

#include "base/check.h"
#include "base/parallel.h"
#include "kernels/tile.h"

namespace fathom::kernels {
namespace {

// Columns that one pass over the rows takes. A pass is compiled for its number of vectors: a loop
// over the few that a row has would cost as much again.
constexpr int64_t kPassVectors = 8;

// Eight sums of eight lanes become eight lanes.
FATHOM_INLINE F32x8 sums_of_lanes(F32x8 (&sum)[kLanes]) {
  transpose(sum);
  return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

// out[i] = x . row index[i], or adds it, over kVectors vectors of columns.
template <int kVectors>
KERNEL void dots(const float* x, View2<const float> rows, std::span<const int32_t> index, bool add,
                 float* out) {
  F32x8 value[kVectors];
  for (int v = 0; v < kVectors; ++v) value[v] = load(x + v * kLanes);
  const auto count = std::ssize(index);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t here = std::min(count - i, kLanes);
    // The next eight are fetched meanwhile; after the last ones nothing new.
    const int64_t ahead = i + 2 * kLanes <= count ? kLanes : 0;
    F32x8 sum[kLanes];
#pragma GCC unroll 8
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t at = i + (lane < here ? lane : 0);
      const float* const row = rows[index[at]];
      const float* const next = rows[index[at + ahead]];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v += 2) __builtin_prefetch(next + v * kLanes);
      sum[lane] = value[0] * load(row);
#pragma GCC unroll 8
      for (int v = 1; v < kVectors; ++v) sum[lane] += value[v] * load(row + v * kLanes);
    }
    F32x8 result = sums_of_lanes(sum);
    if (here == kLanes) {
      store(out + i, add ? load(out + i) + result : result);
    } else {
      store_partial(out + i, add ? load_partial(out + i, here) + result : result, here);
    }
  }
}

constexpr decltype(&dots<1>) kDots[kPassVectors] = {dots<1>, dots<2>, dots<3>, dots<4>,
                                                    dots<5>, dots<6>, dots<7>, dots<8>};

// kVectors vectors of columns. Where registers allow it, two sums for each hide their latency.
template <int kVectors>
KERNEL void add_columns(const float* weight, float factor, View2<const float> rows,
                        std::span<const int32_t> index, float* out) {
  constexpr int kSums = kVectors <= 6 ? 2 : 1;
  F32x8 sum[kSums][kVectors];
#pragma GCC unroll 2
  for (int half = 0; half < kSums; ++half)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[half][v] = F32x8{};
  const auto count = std::ssize(index);
  const auto add = [&](int half, int64_t i) __attribute__((always_inline)) {
    const float* const row = rows[index[i]];
    const F32x8 value = broadcast(weight[i]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[half][v] += value * load(row + v * kLanes);
  };
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums)
    for (int half = 0; half < kSums; ++half) add(half, i + half);
  if (i < count) add(0, i);
  for (int v = 0; v < kVectors; ++v)
    store(out + v * kLanes, load(out + v * kLanes) +
                                (kSums == 2 ? sum[0][v] + sum[kSums - 1][v] : sum[0][v]) * factor);
}

constexpr decltype(&add_columns<1>) kAddColumns[kPassVectors] = {
    add_columns<1>, add_columns<2>, add_columns<3>, add_columns<4>,
    add_columns<5>, add_columns<6>, add_columns<7>, add_columns<8>};

KERNEL void copy_head(const float* row, int64_t dim, bool round, float* out) {
  for (int64_t d = 0; d < dim; d += kLanes) {
    const F32x8 value = d + kLanes <= dim ? load(row + d) : load_partial(row + d, dim - d);
    store(out + d, round ? round_to_bf16(value) : value);
  }
}

// Calls pass(first column, number of whole vectors, at most eight) until fewer columns are left
// than a vector has; returns the first of them.
template <typename Pass>
int64_t for_each_pass(int64_t cols, const Pass& pass) {
  int64_t d = 0;
  while (d + kLanes <= cols) {
    const int64_t vectors = std::min(kPassVectors, (cols - d) / kLanes);
    pass(d, vectors);
    d += vectors * kLanes;
  }
  return d;
}

View2<const float> columns_from(View2<const float> rows, int64_t d, int64_t vectors) {
  return {rows.data + d, rows.rows, vectors * kLanes, rows.stride};
}

}  // namespace

void gathered_dots(const float* x, View2<const float> rows, std::span<const int32_t> index,
                   float* out) {
  const int64_t rest = for_each_pass(rows.cols, [&](int64_t d, int64_t vectors) {
    kDots[vectors - 1](x + d, columns_from(rows, d, vectors), index, d > 0, out);
  });
  if (rest == rows.cols) return;
  for (size_t i = 0; i < index.size(); ++i) {
    float sum = rest > 0 ? out[i] : 0.0f;
    for (int64_t d = rest; d < rows.cols; ++d) sum += x[d] * rows[index[i]][d];
    out[i] = sum;
  }
}

void add_gathered_sum(const float* weight, float factor, View2<const float> rows,
                      std::span<const int32_t> index, float* out) {
  const int64_t rest = for_each_pass(rows.cols, [&](int64_t d, int64_t vectors) {
    kAddColumns[vectors - 1](weight, factor, columns_from(rows, d, vectors), index, out + d);
  });
  for (int64_t d = rest; d < rows.cols; ++d) {
    float sum = 0;
    for (size_t i = 0; i < index.size(); ++i) sum += weight[i] * rows[index[i]][d];
    out[d] += sum * factor;
  }
}

void HeadRowsF32::assign(View2<const float> rows, int64_t num_heads, bool round) {
  CHECK_EQ(rows.cols % num_heads, 0);
  const int64_t dim = rows.cols / num_heads;
  num_rows_ = rows.rows;
  stride_ = round_up(dim, kLanes);
  data_ = buffer_.reserve<float>(num_heads * num_rows_ * stride_);
  base::parallel_for(rows.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t h = 0; h < num_heads; ++h)
        copy_head(rows[i] + h * dim, dim, round, data_ + (h * num_rows_ + i) * stride_);
  });
}

void clear_rows(View2<float> rows) {
  base::parallel_for(rows.rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::fill_n(rows[i], rows.cols, 0.0f);
  });
}

}  // namespace fathom::kernels
