// gathered_rows in bf16: what the bf16 paths of training's sparse attention and of the indexer's
// loss are made of. A query's own keys are read where they lie: neighbouring queries' selections
// have too little in common for a dense product that they share, unless tiles do it (LOG.md). One
// head at a time, for many queries before the next: what they select of one head stays in the
// second cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "base/array_view.h"
#include "kernels/bf16_tile.h"

namespace fathom::kernels {

// Rows of f32 heads rounded to bf16, one head's rows behind another's, each padded with zeros to
// whole cache lines.
class HeadRows {
 public:
  // Row i holds num_heads heads of rows.cols / num_heads elements. Parallel over rows.
  void assign(View2<const float> rows, int64_t num_heads) { assign(rows, {}, num_heads); }
  // Behind each head's row comes its row of `more`, which begins at a cache line too.
  void assign(View2<const float> rows, View2<const float> more, int64_t num_heads);

  int64_t dim() const { return dim_; }      // of `rows`
  int64_t words() const { return words_; }  // of a head, two elements each: a multiple of 16
  // Rows of one head serve all heads of a query.
  const uint32_t* head(int64_t h) const {
    return data_ + (is_shared() ? 0 : h) * num_rows_ * words_;
  }

 private:
  bool is_shared() const { return num_heads_ == 1; }

  int64_t num_rows_ = 0, num_heads_ = 0, dim_ = 0, words_ = 0;
  LineBuffer buffer_;
  uint32_t* data_ = nullptr;
};

// The keys of one query, filled up to a multiple of 16 with its last one.
class PaddedKeys {
 public:
  void assign(std::span<const int32_t> keys);

  int64_t count() const { return count_; }
  int64_t padded() const { return static_cast<int64_t>(keys_.size()); }
  std::span<const int32_t> all() const { return keys_; }
  // [begin, begin + count), less at the end; both are multiples of 16.
  std::span<const int32_t> slice(int64_t begin, int64_t count) const {
    return all().subspan(begin, std::min(count, padded() - begin));
  }

 private:
  int64_t count_ = 0;
  std::vector<int32_t> keys_;
};

// So many keys' rows of a head and what is computed of them stay in the first cache.
inline constexpr int64_t kChunkKeys = 128;

// Below, keys are all of a query's or a slice; numbers for them begin with a cache line where they
// are f32, at a multiple of 32 bytes where they are bf16. Serial; has_bf16_dot() processors only.

// dots[i] = row t of x's head h . rows[keys[i]] of the same head.
void gathered_dots(const HeadRows& x, int64_t t, const HeadRows& rows, int64_t h,
                   std::span<const int32_t> keys, float* dots);

// out[d] += factor * sum_i weight[i] * rows[keys[i]][d] of head h; weights are bf16, those of keys
// that fill up zero.
void add_gathered_sum(const uint32_t* weights, float factor, const HeadRows& rows, int64_t h,
                      std::span<const int32_t> keys, float* out);

// The sum of a[i] * b[i], b rounded: with out and dout, what a row of dout . v sums to by its
// probabilities. Serial, in one fixed order; has_bf16_dot() processors only.
float dot_of_rounded(const float* a, const float* b, int64_t count);

}  // namespace fathom::kernels
