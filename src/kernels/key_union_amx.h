// What training's sparse kernels do with a KeyUnion in the processor's tiles: rows of its keys and
// queries laid out as operands, and the three products between them.
//
// Rows are those of HeadRows: pairs of bf16, zeros behind the head's elements. Numbers for pairs of
// key and query lie [key][32 queries]. `keys` are all of a union's padded_keys() or a slice of
// them: always a multiple of 32. Buffers begin with a cache line. Serial, without allocation; only
// where has_amx(), which also asks the system for tiles; the products while a TileShape of 16
// columns lives.
#pragma once

#include <cstdint>
#include <span>

#include "base/array_view.h"
#include "kernels/amx_tile.h"
#include "kernels/gathered_bf16.h"
#include "kernels/key_union.h"
#include "kernels/tile.h"

#if FATHOM_HAS_AMX_KERNELS

namespace fathom::kernels {

// So many keys' rows and what is computed of them stay in the first cache.
inline constexpr int64_t kUnionChunk = kChunkKeys;
// Words of weights of 32 keys: a tile for each sixteen queries.
inline constexpr int64_t kTileWeights = kUnionQueries / kAmxRows * kTileWords;
static_assert(kUnionQueries == 2 * kAmxCols && kUnionQueries == kAmxK);

// How many columns of sums a head of so many elements has.
inline int64_t sum_columns(int64_t dim) { return round_up(dim, kAmxCols); }

// One head's rows of the keys, one behind another.
void copy_key_rows(const HeadRows& rows, int64_t h, std::span<const int32_t> keys, uint32_t* out);
// `words` of each of num_rows rows, multiples of 16 and of 32.
struct PairRows {
  const uint32_t* data;
  int64_t num_rows, words, stride;

  const uint32_t* operator[](int64_t i) const { return data + i * stride; }
};

// Thirty-two rows as columns of B, along the head's elements: [2][words / 16] tiles.
void pack_as_columns(const PairRows& rows, uint32_t* tiles);
// As rows of B, along the rows: [words / 8] times num_rows / 32 tiles, tiles_stride words apart.
void pack_as_rows(const PairRows& rows, int64_t tiles_stride, uint32_t* tiles);

// The rows of a union's queries, those missing zero, as columns and, where query_tiles is there, as
// rows of B; 32 rows.words() words each. `rows_scratch` is as large.
void pack_queries(const HeadRows& rows, int64_t h, const KeyUnion& keys, uint32_t* rows_scratch,
                  uint32_t* query_columns, uint32_t* query_tiles);

// dots[i][q] = rows[i] . queries[q]; query_columns by pack_queries.
void multiply_keys_and_queries(const PairRows& rows, const uint32_t* query_columns, float* dots);

// maximum_Q = the greatest of each query's scores of keys that it selected, and of what it was.
void update_maximum(const uint32_t* selectors, int64_t num_keys, const float* scores,
                    float* maximum_Q);

// Sixteen queries' weights for 32 keys, as a tile of A along the keys. weight(i) gives sixteen f32
// of key i, i ascending.
template <typename Weight>
AMX_INLINE void store_weight_tile(Weight weight, uint32_t* tile) {
  __m512i pairs[kAmxPairs];
  for (int64_t p = 0; p < kAmxPairs; ++p) {
    const __m512 even = weight(2 * p);
    pairs[p] = round_to_pairs_of_rows(even, weight(2 * p + 1));
  }
  transpose_lanes(pairs);
  for (int64_t q = 0; q < kAmxRows; ++q) _mm512_store_si512(tile + q * kAmxPairs, pairs[q]);
}

// sums[q][d] += sum over keys of weight[i][q] rows[i][d], d < dim. weight_tiles: [num_rows / 32][2]
// of the above; row_tiles by pack_as_rows; sums [32][sum_columns(dim)].
void add_sums_by_query(const uint32_t* weight_tiles, const uint32_t* row_tiles,
                       int64_t tiles_stride, int64_t num_rows, int64_t dim, float* sums);

// sums[i][d] = sum over heads and queries of weights[head][i][q] rows[head][q][d], d < dim: weights
// are bf16, [num_heads][num_rows][32]; query_tiles [num_heads][words / 8] by pack_queries; sums
// [num_rows], a multiple of 16 apart.
void sum_by_key(const uint16_t* weights, const uint32_t* query_tiles, int64_t num_heads,
                int64_t num_rows, int64_t words, int64_t dim, int64_t sums_stride, float* sums);

// rows[keys[i]] += sums[i], which are sum_columns(rows.cols) apart.
void add_to_rows(const float* sums, std::span<const int32_t> keys, View2<float> rows);

// Numbers beside keys_T.keys, of which `keys` has some queries, to and from [key][32 queries]. What
// a query did not select is zero in `spread`.
void spread_lists(const KeyUnion& keys, SelectedKeys keys_T, const float* numbers, float* spread);
void collect_lists(const KeyUnion& keys, SelectedKeys keys_T, const float* spread, float* numbers);

}  // namespace fathom::kernels

#endif
