#include "kernels/gathered_rows.h"

#include <algorithm>

#include "base/parallel.h"
#include "kernels/tile.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kSumVectors = 4;  // columns that stay in registers over all rows

// Eight rows' dot products with x: one sum a row, turned into lanes at the end.
FATHOM_INLINE F32x8 eight_dots(const float* x, const float* const (&row)[kLanes], int64_t dim) {
  F32x8 sum[kLanes];
  for (auto& lanes : sum) lanes = F32x8{};
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    const F32x8 value = load(x + d);
    for (int64_t i = 0; i < kLanes; ++i) sum[i] += value * load(row[i] + d);
  }
  if (d < dim) {
    const F32x8 value = load_partial(x + d, dim - d);
    for (int64_t i = 0; i < kLanes; ++i) sum[i] += value * load_partial(row[i] + d, dim - d);
  }
  transpose(sum);
  return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

KERNEL void dots(const float* x, const float* rows, int64_t stride, int64_t dim,
                 const int32_t* index, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t here = count - i < kLanes ? count - i : kLanes;
    const float* row[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane)
      row[lane] = rows + index[i + (lane < here ? lane : 0)] * stride;
    const F32x8 result = eight_dots(x, row, dim);
    if (here == kLanes)
      store(out + i, result);
    else
      store_partial(out + i, result, here);
  }
}

template <int kVectors>
FATHOM_INLINE void sum_columns(const float* weight, const float* rows, int64_t stride,
                               const int32_t* index, int64_t count, float* out) {
  F32x8 sum[2][kVectors];
  for (auto& half : sum)
    for (auto& lanes : half) lanes = F32x8{};
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    for (int64_t half = 0; half < 2; ++half) {
      const float* row = rows + index[i + half] * stride;
      const F32x8 factor = broadcast(weight[i + half]);
      for (int v = 0; v < kVectors; ++v) sum[half][v] += factor * load(row + v * kLanes);
    }
  }
  if (i < count) {
    const float* row = rows + index[i] * stride;
    const F32x8 factor = broadcast(weight[i]);
    for (int v = 0; v < kVectors; ++v) sum[0][v] += factor * load(row + v * kLanes);
  }
  for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, sum[0][v] + sum[1][v]);
}

KERNEL void weighted_sum(const float* weight, const float* rows, int64_t stride, int64_t dim,
                         const int32_t* index, int64_t count, float* out) {
  int64_t d = 0;
  for (; d + kSumVectors * kLanes <= dim; d += kSumVectors * kLanes)
    sum_columns<kSumVectors>(weight, rows + d, stride, index, count, out + d);
  for (; d + kLanes <= dim; d += kLanes)
    sum_columns<1>(weight, rows + d, stride, index, count, out + d);
  for (; d < dim; ++d) {
    float sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += weight[i] * rows[index[i] * stride + d];
    out[d] = sum;
  }
}

KERNEL void add_multiples(const float* weight, const float* x, int64_t dim, const int32_t* index,
                          int64_t count, float* rows, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    float* const row = rows + index[i] * stride;
    const F32x8 factor = broadcast(weight[i]);
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) store(row + d, load(row + d) + factor * load(x + d));
    for (; d < dim; ++d) row[d] += weight[i] * x[d];
  }
}

}  // namespace

void gathered_dots(const float* x, View2<const float> rows, std::span<const int32_t> index,
                   float* out) {
  dots(x, rows.data, rows.stride, rows.cols, index.data(), std::ssize(index), out);
}

void gathered_sum(const float* weight, View2<const float> rows, std::span<const int32_t> index,
                  float* out) {
  weighted_sum(weight, rows.data, rows.stride, rows.cols, index.data(), std::ssize(index), out);
}

void scatter_add(const float* weight, const float* x, std::span<const int32_t> index,
                 View2<float> rows) {
  add_multiples(weight, x, rows.cols, index.data(), std::ssize(index), rows.data, rows.stride);
}

void clear_rows(View2<float> rows) {
  base::parallel_for(rows.rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::fill_n(rows[i], rows.cols, 0.0f);
  });
}

}  // namespace fathom::kernels
