#include "kernels/gathered_rows.h"

#include <algorithm>

#include "base/check.h"
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
FATHOM_INLINE void add_columns(const float* weight, float factor, const float* rows, int64_t stride,
                               std::span<const int32_t> index, float* out) {
  F32x8 sum[2][kVectors];
  for (auto& half : sum)
    for (auto& lanes : half) lanes = F32x8{};
  const auto count = std::ssize(index);
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    for (int64_t half = 0; half < 2; ++half) {
      const float* row = rows + index[i + half] * stride;
      const F32x8 value = broadcast(weight[i + half]);
      for (int v = 0; v < kVectors; ++v) sum[half][v] += value * load(row + v * kLanes);
    }
  }
  if (i < count) {
    const float* row = rows + index[i] * stride;
    const F32x8 value = broadcast(weight[i]);
    for (int v = 0; v < kVectors; ++v) sum[0][v] += value * load(row + v * kLanes);
  }
  for (int v = 0; v < kVectors; ++v)
    store(out + v * kLanes, load(out + v * kLanes) + (sum[0][v] + sum[1][v]) * factor);
}

KERNEL void add_sum(const float* weight, float factor, View2<const float> rows,
                    std::span<const int32_t> index, float* out) {
  int64_t d = 0;
  for (; d + kSumVectors * kLanes <= rows.cols; d += kSumVectors * kLanes)
    add_columns<kSumVectors>(weight, factor, rows.data + d, rows.stride, index, out + d);
  for (; d + 2 * kLanes <= rows.cols; d += 2 * kLanes)
    add_columns<2>(weight, factor, rows.data + d, rows.stride, index, out + d);
  for (; d + kLanes <= rows.cols; d += kLanes)
    add_columns<1>(weight, factor, rows.data + d, rows.stride, index, out + d);
  for (; d < rows.cols; ++d) {
    float sum = 0;
    for (size_t i = 0; i < index.size(); ++i) sum += weight[i] * rows[index[i]][d];
    out[d] += sum * factor;
  }
}

KERNEL void copy_head(const float* row, int64_t dim, bool round, float* out) {
  for (int64_t d = 0; d < dim; d += kLanes) {
    const F32x8 value = d + kLanes <= dim ? load(row + d) : load_partial(row + d, dim - d);
    store(out + d, round ? round_to_bf16(value) : value);
  }
}

}  // namespace

void gathered_dots(const float* x, View2<const float> rows, std::span<const int32_t> index,
                   float* out) {
  dots(x, rows.data, rows.stride, rows.cols, index.data(), std::ssize(index), out);
}

void add_gathered_sum(const float* weight, float factor, View2<const float> rows,
                      std::span<const int32_t> index, float* out) {
  add_sum(weight, factor, rows, index, out);
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
