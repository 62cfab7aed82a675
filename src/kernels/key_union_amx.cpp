#include "kernels/key_union_amx.h"

#include <algorithm>
#include <array>
#include <bit>

#if FATHOM_HAS_AMX_KERNELS

namespace fathom::kernels {
namespace {

constexpr size_t kAhead = 16;  // keys whose rows are fetched before their turn

// Bit i: whether query q selected the i-th of sixteen keys.
AMX_INLINE __mmask16 keys_of(const uint32_t* selectors, int64_t q) {
  return _mm512_test_epi32_mask(_mm512_loadu_si512(selectors),
                                _mm512_set1_epi32(static_cast<int>(uint32_t{1} << q)));
}

// Where each query's own numbers begin; null for missing queries, which have no bits.
template <typename T>
std::array<T*, kUnionQueries> lists_of(const KeyUnion& keys, SelectedKeys keys_T, T* numbers) {
  std::array<T*, kUnionQueries> list_Q{};
  for (int64_t q = 0; q < keys.size(); ++q)
    list_Q[q] = numbers + keys_T.begins_T1[keys.begin() + q];
  return list_Q;
}

}  // namespace

AMX_KERNEL void copy_key_rows(const HeadRows& rows, int64_t h, std::span<const int32_t> keys,
                              uint32_t* out) {
  const uint32_t* const head = rows.head(h);
  const int64_t words = rows.words();
  for (size_t i = 0; i < keys.size(); ++i) {
    const uint32_t* const row = head + keys[i] * words;
    const uint32_t* const ahead = head + keys[std::min(i + kAhead, keys.size() - 1)] * words;
    for (int64_t word = 0; word < words; word += kAmxPairs) {
      _mm_prefetch(ahead + word, _MM_HINT_T0);
      _mm512_store_si512(out + i * words + word, _mm512_load_si512(row + word));
    }
  }
}

AMX_KERNEL void pack_as_columns(const PairRows& rows, uint32_t* tiles) {
  for (int64_t i = 0; i < kUnionQueries; i += kAmxCols)
    for (int64_t word = 0; word < rows.words; word += kAmxPairs, tiles += kTileWords) {
      __m512i row[kAmxCols];
      for (int64_t j = 0; j < kAmxCols; ++j) row[j] = _mm512_load_si512(rows[i + j] + word);
      transpose_lanes(row);
      for (int64_t p = 0; p < kAmxPairs; ++p) _mm512_store_si512(tiles + p * kAmxCols, row[p]);
    }
}

AMX_KERNEL void pack_as_rows(const PairRows& rows, int64_t tiles_stride, uint32_t* tiles) {
  const __m512i low = low_pairs_of_rows(), high = high_pairs_of_rows();
  for (int64_t word = 0; word < rows.words; word += kAmxPairs, tiles += 2 * tiles_stride)
    for (int64_t pair = 0; pair < rows.num_rows / 2; ++pair) {
      const __m512i even = _mm512_load_si512(rows[2 * pair] + word);
      const __m512i odd = _mm512_load_si512(rows[2 * pair + 1] + word);
      uint32_t* const out = tiles + pair * kAmxCols;
      _mm512_store_si512(out, _mm512_permutex2var_epi16(even, low, odd));
      _mm512_store_si512(out + tiles_stride, _mm512_permutex2var_epi16(even, high, odd));
    }
}

void pack_queries(const HeadRows& rows, int64_t h, const KeyUnion& keys, uint32_t* rows_scratch,
                  uint32_t* query_columns, uint32_t* query_tiles) {
  const int64_t words = rows.words();
  std::copy_n(rows.head(h) + keys.begin() * words, keys.size() * words, rows_scratch);
  std::fill(rows_scratch + keys.size() * words, rows_scratch + kUnionQueries * words, 0u);
  const PairRows queries{rows_scratch, kUnionQueries, words, words};
  pack_as_columns(queries, query_columns);
  if (query_tiles) pack_as_rows(queries, kTileWords, query_tiles);
}

void multiply_keys_and_queries(const PairRows& rows, const uint32_t* query_columns, float* dots) {
  const int64_t num_k = rows.words / kAmxPairs;
  const TilePair queries{query_columns, query_columns + num_k * kTileWords, 64, kTileBytes};
  for (int64_t i = 0; i < rows.num_rows; i += 2 * kAmxRows) {
    clear_sums();
    multiply_two_by_two({rows[i], rows[i + kAmxRows], rows.stride * 4, 64}, queries, num_k);
    SumTiles{dots + i * kUnionQueries, kUnionQueries * 4}.store();
  }
}

AMX_KERNEL void update_maximum(const uint32_t* selectors, int64_t num_keys, const float* scores,
                               float* maximum_Q) {
  __m512 most0 = _mm512_load_ps(maximum_Q), most1 = _mm512_load_ps(maximum_Q + 16);
  for (int64_t i = 0; i < num_keys; ++i, scores += kUnionQueries) {
    const auto own0 = static_cast<__mmask16>(selectors[i]);
    const auto own1 = static_cast<__mmask16>(selectors[i] >> 16);
    most0 = _mm512_mask_max_ps(most0, own0, most0, _mm512_load_ps(scores));
    most1 = _mm512_mask_max_ps(most1, own1, most1, _mm512_load_ps(scores + 16));
  }
  _mm512_store_ps(maximum_Q, most0);
  _mm512_store_ps(maximum_Q + 16, most1);
}

void add_sums_by_query(const uint32_t* weight_tiles, const uint32_t* row_tiles,
                       int64_t tiles_stride, int64_t num_rows, int64_t dim, float* sums) {
  const TilePair weights{weight_tiles, weight_tiles + kTileWords, 64, 2 * kTileBytes};
  for (int64_t d = 0; d < dim; d += 2 * kAmxCols) {
    const bool has_second = d + kAmxCols < dim;
    const uint32_t* const tiles = row_tiles + d / kAmxCols * tiles_stride;
    const SumTiles c{sums + d, sum_columns(dim) * 4, true, has_second};
    c.load();
    multiply_two_by_two(weights, {tiles, tiles + (has_second ? tiles_stride : 0), 64, kTileBytes},
                        num_rows / kAmxK);
    c.store();
  }
}

void sum_by_key(const uint16_t* weights, const uint32_t* query_tiles, int64_t num_heads,
                int64_t num_rows, int64_t words, int64_t dim, int64_t sums_stride, float* sums) {
  constexpr int64_t kRowBytes = kUnionQueries * 2;
  for (int64_t i = 0; i < num_rows; i += 2 * kAmxRows) {
    const uint16_t* const weight = weights + i * kUnionQueries;
    for (int64_t d = 0; d < dim; d += 2 * kAmxCols) {
      const bool has_second = d + kAmxCols < dim;
      const uint32_t* const tiles = query_tiles + d / kAmxCols * kTileWords;
      clear_sums();
      multiply_two_by_two(
          {weight, weight + kAmxRows * kUnionQueries, kRowBytes, num_rows * kRowBytes},
          {tiles, tiles + (has_second ? kTileWords : 0), 64, words / 8 * kTileBytes}, num_heads);
      SumTiles{sums + i * sums_stride + d, sums_stride * 4, true, has_second}.store();
    }
  }
}

AMX_KERNEL void add_to_rows(const float* sums, std::span<const int32_t> keys, View2<float> rows) {
  const int64_t columns = sum_columns(rows.cols), whole = rows.cols / 16 * 16;
  const __mmask16 rest = first_lanes(rows.cols - whole);
  for (size_t i = 0; i < keys.size(); ++i, sums += columns) {
    float* const row = rows[keys[i]];
    const float* const ahead = rows[keys[std::min(i + kAhead, keys.size() - 1)]];
    for (int64_t d = 0; d < columns; d += 16) _mm_prefetch(ahead + d, _MM_HINT_T0);
    for (int64_t d = 0; d < whole; d += 16)
      _mm512_storeu_ps(row + d, _mm512_add_ps(_mm512_loadu_ps(row + d), _mm512_load_ps(sums + d)));
    if (rest == 0) continue;
    const __m512 last =
        _mm512_add_ps(_mm512_maskz_loadu_ps(rest, row + whole), _mm512_load_ps(sums + whole));
    _mm512_mask_storeu_ps(row + whole, rest, last);
  }
}

AMX_KERNEL void spread_lists(const KeyUnion& keys, SelectedKeys keys_T, const float* numbers,
                             float* spread) {
  auto list_Q = lists_of(keys, keys_T, numbers);
  for (int64_t i = 0; i < std::ssize(keys.padded_keys()); i += 16)
    for (int64_t q = 0; q < kUnionQueries; q += kAmxCols) {
      __m512i query[16];
      for (int64_t j = 0; j < 16; ++j) {
        const __mmask16 is_own = keys_of(keys.selectors() + i, q + j);
        const int count = std::popcount(static_cast<uint32_t>(is_own));
        query[j] = _mm512_maskz_expand_epi32(
            is_own, _mm512_maskz_loadu_epi32(first_lanes(count), list_Q[q + j]));
        list_Q[q + j] += count;
      }
      transpose_lanes(query);
      for (int64_t j = 0; j < 16; ++j)
        _mm512_store_si512(spread + (i + j) * kUnionQueries + q, query[j]);
    }
}

AMX_KERNEL void collect_lists(const KeyUnion& keys, SelectedKeys keys_T, const float* spread,
                              float* numbers) {
  auto list_Q = lists_of(keys, keys_T, numbers);
  for (int64_t i = 0; i < std::ssize(keys.padded_keys()); i += 16)
    for (int64_t q = 0; q < kUnionQueries; q += kAmxCols) {
      __m512i query[16];
      for (int64_t j = 0; j < 16; ++j)
        query[j] = _mm512_load_si512(spread + (i + j) * kUnionQueries + q);
      transpose_lanes(query);
      for (int64_t j = 0; j < 16; ++j) {
        const __mmask16 is_own = keys_of(keys.selectors() + i, q + j);
        const int count = std::popcount(static_cast<uint32_t>(is_own));
        _mm512_mask_storeu_epi32(list_Q[q + j], first_lanes(count),
                                 _mm512_maskz_compress_epi32(is_own, query[j]));
        list_Q[q + j] += count;
      }
    }
}

}  // namespace fathom::kernels

#endif
