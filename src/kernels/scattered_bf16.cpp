#include "kernels/scattered_bf16.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace fathom::kernels {

#if FATHOM_HAS_BF16_KERNELS

namespace {

BF16_KERNEL void pair_two_rows(const float* even, const float* odd, int64_t count,
                               uint32_t* words) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first_lanes(count - i);
    const __m512 first = even ? _mm512_maskz_loadu_ps(lanes, even + i) : _mm512_setzero_ps();
    const __m512 second = odd ? _mm512_maskz_loadu_ps(lanes, odd + i) : _mm512_setzero_ps();
    _mm512_mask_storeu_epi32(words + i, lanes, round_to_pairs_of_rows(first, second));
  }
}

// Goes through one query's weights as the group's keys come.
struct Spreader {
  const uint16_t* is_selected = nullptr;  // null: there is no such query
  const float* next = nullptr;

  BF16_INLINE __m512 sixteen(int64_t word) {
    if (!is_selected) return _mm512_setzero_ps();
    const __mmask16 lanes = is_selected[word];
    const int count = std::popcount(static_cast<uint32_t>(lanes));
    const __m512 weights = _mm512_maskz_loadu_ps(first_lanes(count), next);
    next += count;
    return _mm512_maskz_expand_ps(lanes, weights);
  }
};

BF16_KERNEL void spread_pair(Spreader even, Spreader odd, int64_t num_keys, uint32_t* words) {
  for (int64_t i = 0; i < num_keys; i += 16) {
    const __m512 first = even.sixteen(i / 16);
    _mm512_storeu_si512(words + i, round_to_pairs_of_rows(first, odd.sixteen(i / 16)));
  }
}

constexpr size_t kAhead = 16;  // keys whose rows are fetched before their turn

// kTerms terms and 16 kVectors columns at most, whose x stays in registers.
template <int kTerms, int kVectors>
BF16_KERNEL void add_columns(const QueryGroup& group, const uint32_t* weights,
                             int64_t weights_stride, const uint32_t* x, int64_t x_stride,
                             int64_t cols, float* rows, int64_t stride) {
  const __mmask16 last = first_lanes(cols - 16 * (kVectors - 1));
  const auto lanes = [last](int v) { return v + 1 < kVectors ? __mmask16{0xffff} : last; };
  __m512i value[kTerms][kVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kTerms; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      value[j][v] = _mm512_maskz_loadu_epi32(lanes(v), x + j * x_stride + 16 * v);
  const auto keys = group.keys();
  for (size_t i = 0; i < keys.size(); ++i) {
    float* const row = rows + keys[i] * stride;
    const float* const ahead = rows + keys[std::min(i + kAhead, keys.size() - 1)] * stride;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm_prefetch(ahead + 16 * v, _MM_HINT_T0);
    __m512 sum[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[v] = _mm512_maskz_loadu_ps(lanes(v), row + 16 * v);
#pragma GCC unroll 8
    for (int j = 0; j < kTerms; ++j) {
      const __m512i weight = _mm512_set1_epi32(static_cast<int>(weights[j * weights_stride + i]));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[v] = dot_pairs(sum[v], value[j][v], weight);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm512_mask_storeu_ps(row + 16 * v, lanes(v), sum[v]);
  }
}

// Terms whose x of so many columns stay in registers.
template <int kTerms, int kMostCols>
void add_terms(const QueryGroup& group, const uint32_t* weights, int64_t weights_stride,
               const uint32_t* x, int64_t x_stride, View2<float> rows) {
  for (int64_t d = 0; d < rows.cols; d += kMostCols) {
    const int64_t cols = std::min<int64_t>(kMostCols, rows.cols - d);
    auto add = cols <= 16 ? add_columns<kTerms, 1> : add_columns<kTerms, 2>;
    if constexpr (kMostCols > 32)
      if (cols > 32) add = cols <= 48 ? add_columns<kTerms, 3> : add_columns<kTerms, 4>;
    add(group, weights, weights_stride, x + d, x_stride, cols, rows.data + d, rows.stride);
  }
}

}  // namespace

void pair_rows(const QueryGroup& group, View2<const float> x, int64_t words_stride,
               uint32_t* words) {
  for (int64_t q = 0; q < kGroupQueries; q += 2) {
    const auto row = [&](int64_t i) { return i < group.size() ? x[group.begin() + i] : nullptr; };
    pair_two_rows(row(q), row(q + 1), x.cols, words + q / 2 * words_stride);
  }
}

void pair_weights(const QueryGroup& group, std::span<float* const> weights, uint32_t* words) {
  for (int64_t q = 0; q < kGroupQueries; q += 2) {
    const auto spreader = [&](int64_t i) {
      return i < group.size() ? Spreader{group.is_selected(i), weights[i]} : Spreader{};
    };
    spread_pair(spreader(q), spreader(q + 1), group.num_padded_keys(),
                words + q / 2 * group.num_padded_keys());
  }
}

void scatter_add(const QueryGroup& group, const PairTerms& terms, View2<float> rows) {
  static_assert(kGroupPairs == 4);
  CHECK_EQ(terms.num_terms % kGroupPairs, 0);
  const auto at = [&](int64_t first, auto kernel) {
    kernel(group, terms.weights + first * terms.weights_stride, terms.weights_stride,
           terms.x + first * terms.x_stride, terms.x_stride, rows);
  };
  int64_t first = 0;
  for (; first + 8 <= terms.num_terms; first += 8) at(first, add_terms<8, 32>);
  if (first < terms.num_terms) at(first, add_terms<4, 64>);
}

#else

void pair_rows(const QueryGroup&, View2<const float>, int64_t, uint32_t*) {
  CHECK(false, "no bf16 kernels here");
}
void pair_weights(const QueryGroup&, std::span<float* const>, uint32_t*) {
  CHECK(false, "no bf16 kernels here");
}
void scatter_add(const QueryGroup&, const PairTerms&, View2<float>) {
  CHECK(false, "no bf16 kernels here");
}

#endif

}  // namespace fathom::kernels
