// gathered_rows in bf16, for all heads of a query at once: what the bf16 paths of training's sparse
// attention and of the indexer's loss are made of. A query's own keys are read where they lie:
// neighbouring queries' selections have too little in common to share a dense product (LOG.md).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/array_view.h"
#include "kernels/bf16_tile.h"

namespace fathom::kernels {

// Rows of f32 heads rounded to bf16, each head padded with zeros to whole cache lines.
class HeadRows {
 public:
  // Row i holds num_heads heads of rows.cols / num_heads elements. Parallel over rows.
  void assign(View2<const float> rows, int64_t num_heads);

  int64_t num_heads() const { return num_heads_; }
  int64_t dim() const { return dim_; }
  int64_t words() const { return words_; }  // of a head, two elements each: a multiple of 16
  const uint32_t* head(int64_t row, int64_t h) const {
    return data_ + (row * num_heads_ + h) * words_;
  }

 private:
  int64_t num_heads_ = 0, dim_ = 0, words_ = 0;
  LineBuffer buffer_;
  uint32_t* data_ = nullptr;
};

// The keys of one query, filled up to a multiple of 16 with its last one.
class PaddedKeys {
 public:
  void assign(std::span<const int32_t> keys);

  int64_t count() const { return count_; }
  int64_t padded() const { return static_cast<int64_t>(keys_.size()); }
  const int32_t* data() const { return keys_.data(); }

 private:
  int64_t count_ = 0;
  std::vector<int32_t> keys_;
};

// Below, rows of `padded` floats begin with a cache line, rows of `padded` / 2 words at a multiple
// of 32 bytes. Rows of one head serve all heads of x. Serial; has_bf16_dot() processors only.

// dots[h][i] = head h of x's row . head h of rows[keys[i]], for i below `padded`.
void gathered_head_dots(const HeadRows& x, int64_t row, const HeadRows& rows,
                        const PaddedKeys& keys, float* dots);

// out[h * dim + d] = factor[h] * sum_i weight[h][i] * rows[keys[i]][h][d]; weights are bf16, those
// beyond the count zero.
void gathered_head_sums(const uint32_t* weights, std::span<const float> factor,
                        const HeadRows& rows, const PaddedKeys& keys, float* out);

}  // namespace fathom::kernels
