// Products with the rows of a matrix that a list of indices names: what training's sparse attention
// and the indexer's loss are made of. The products are serial and do not allocate. Bits depend on
// the operands alone. Oracles: plain loops in gathered_rows_test.cpp, relative tolerance 1e-5.
#pragma once

#include <cstdint>
#include <span>

#include "base/array_view.h"
#include "kernels/bf16_tile.h"

namespace fathom::kernels {

// One head's rows behind another's, so that what a list names of a head lies close together. Rows
// begin with a cache line or its half and are padded with zeros to whole vectors of eight.
class HeadRowsF32 {
 public:
  HeadRowsF32() = default;
  HeadRowsF32(const HeadRowsF32&) = delete;

  // Row i holds num_heads heads of rows.cols / num_heads numbers; `round` rounds them to bf16.
  // Parallel over rows.
  void assign(View2<const float> rows, int64_t num_heads, bool round);

  View2<const float> head(int64_t h) const {
    return {data_ + h * num_rows_ * stride_, num_rows_, stride_, stride_};
  }

 private:
  int64_t num_rows_ = 0, stride_ = 0;
  LineBuffer buffer_;
  float* data_ = nullptr;
};

// out[i] = x . rows[index[i]], over rows.cols elements.
void gathered_dots(const float* x, View2<const float> rows, std::span<const int32_t> index,
                   float* out);

// out[d] += factor * sum_i weight[i] * rows[index[i]][d].
void add_gathered_sum(const float* weight, float factor, View2<const float> rows,
                      std::span<const int32_t> index, float* out);

// All of them zero: what sums by keys begin with. Parallel over rows.
void clear_rows(View2<float> rows);

}  // namespace fathom::kernels
