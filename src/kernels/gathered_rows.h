// Products with the rows of a matrix that a list of indices names: what training's sparse attention
// and the indexer's loss are made of. Serial; none allocates. Bits depend on the operands alone.
// Oracles: plain loops in gathered_rows_test.cpp, relative tolerance 1e-5.
#pragma once

#include <cstdint>
#include <span>

#include "base/array_view.h"

namespace fathom::kernels {

// out[i] = x . rows[index[i]], over rows.cols elements.
void gathered_dots(const float* x, View2<const float> rows, std::span<const int32_t> index,
                   float* out);

// out[d] = sum_i weight[i] * rows[index[i]][d]; out is overwritten.
void gathered_sum(const float* weight, View2<const float> rows, std::span<const int32_t> index,
                  float* out);

// rows[index[i]] += weight[i] * x.
void scatter_add(const float* weight, const float* x, std::span<const int32_t> index,
                 View2<float> rows);

// All of them zero: what sums by keys begin with. Parallel over rows.
void clear_rows(View2<float> rows);

}  // namespace fathom::kernels
