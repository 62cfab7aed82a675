// The lightning indexer's tile on AMX: one query's heads, sixteen at a time, against 32 keys as
// index_tile_bf16.h packs them; or four queries' few heads. For lightning_indexer.cpp, on has_amx()
// processors.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/amx_tile.h"
#include "kernels/index_tile_bf16.h"

namespace fathom::kernels {

// Words of 32 bits that the packed heads of a query take.
int64_t tiled_heads_size(int64_t num_heads, int64_t dim);

void tile_heads(const float* q_JX, int64_t num_heads, int64_t dim, uint32_t* heads);

// scores[i] = scales[i] * sum_j w[j] relu(q[j] . k[i]): sums over x in amx_tile.h's order and then
// over heads, in order. Keys from pair_keys(). A TileShape of sixteen columns is alive.
void score_amx_tile(const PackedQuery<uint32_t>& query, const uint32_t* keys, const float* scales,
                    float (&scores)[kIndexTileKeys]);

// Few heads: four at most, whose form is another, as with index_tile_bf16.h's. Keys are the rows of
// a tile, as they lie, and four queries' heads its columns.
inline constexpr int64_t kColumnHeads = 4;
inline constexpr int64_t kColumnQueries = kAmxCols / kColumnHeads;

// For so many queries, packed one after another: words of heads, numbers of weights.
int64_t column_heads_size(int64_t num_queries, int64_t dim);
int64_t column_weights_size(int64_t num_queries);

// The i-th query's heads and weights; in the beginning both are zero.
void set_column_heads(const float* q_JX, std::span<const float> w_J, int64_t dim, int64_t i,
                      uint32_t* heads, float* weights);

// Rows of bf16, `row_bytes` apart, and scales of 32 keys.
struct IndexKeyRows {
  const void* data;
  int64_t row_bytes;
};
int64_t key_rows_size(int64_t dim);

// Keys first .. first + count - 1, as pair_keys(): where they lie, or widened into `copy`.
IndexKeyRows load_key_rows(const PagedRows& k_SX, int64_t first, int64_t count, uint16_t* copy,
                           float (&scales)[kIndexTileKeys]);

// Of the tiles for so many queries: a query alone has its heads' only.
constexpr int64_t score_columns_width(int64_t num_queries) {
  return num_queries == 1 ? kColumnHeads : kAmxCols;
}

// Scores of 32 keys for all queries, up to whole tiles of them, a query's `stride` behind the one
// before: score_amx_tile's formula, the heads' sum in another order. A TileShape of
// score_columns_width(num_queries) columns is alive.
void score_columns(const uint32_t* heads, const float* weights, int64_t num_queries, int64_t dim,
                   const IndexKeyRows& keys, const float* scales, int64_t stride, float* scores);

}  // namespace fathom::kernels
