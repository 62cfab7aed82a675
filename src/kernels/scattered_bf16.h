// Sums by keys in bf16, as gathered_bf16 sums by queries: what gradients of keys and values are
// made of. A group of queries adds to a key's row at once, pair by pair, so that rows are read and
// written once for all of the group that selected them.
#pragma once

#include <cstdint>
#include <span>

#include "base/array_view.h"
#include "kernels/query_group.h"

namespace fathom::kernels {

inline constexpr int64_t kGroupPairs = kGroupQueries / 2;

// Words hold two neighbouring queries' bf16, the first in the low half. Missing queries are zero.

// One head's rows of x: words[pair * words_stride + d], x of the head's first column.
void pair_rows(const QueryGroup& group, View2<const float> x, int64_t words_stride,
               uint32_t* words);

// Weights that each query has for its own keys, in its own order, in the group's order of keys:
// words[pair * group.num_padded_keys() + i], zero where a query did not select the key.
void pair_weights(const QueryGroup& group, std::span<float* const> weights, uint32_t* words);

// Terms of a sum: num_terms of the above, kGroupPairs of each of one or more heads.
struct PairTerms {
  const uint32_t* weights;
  int64_t weights_stride;
  const uint32_t* x;
  int64_t x_stride;
  int64_t num_terms;
};

// rows[key][d] += sum over terms of both weights * x[d], for the group's keys and all columns of
// rows. Sums in f32. The three functions are serial; has_bf16_dot() processors only.
void scatter_add(const QueryGroup& group, const PairTerms& terms, View2<float> rows);

}  // namespace fathom::kernels
