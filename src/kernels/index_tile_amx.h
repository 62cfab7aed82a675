// The lightning indexer's tile on AMX: the heads of queries against a page of keys. For
// lightning_indexer.cpp, on has_amx() processors.
#pragma once

#include <cstdint>

#include "kernels/amx_tile.h"
#include "kernels/index_tile_bf16.h"

namespace fathom::kernels {

// Heads are the rows of tiles: a query has four, eight, sixteen or whole pairs of tiles, so that
// several with few heads share a tile.
int64_t tiled_head_rows(int64_t num_heads);
// Rows of the tiles that are needed for so many queries.
int64_t tile_rows_of_queries(int64_t num_queries, int64_t num_heads);

// Words of 32 bits that the packed heads of so many queries take.
int64_t tiled_heads_size(int64_t num_queries, int64_t num_heads, int64_t dim);
// The i-th query's; in the beginning all are zero.
void tile_heads(const float* q_JX, int64_t num_heads, int64_t dim, int64_t i, uint32_t* heads);

// A page of keys as pair_keys() has them, as far as whole tiles, which is where they lie if they
// end with one.
int64_t tiled_keys_size(int64_t dim);
PairedKeys tile_keys(const IndexKeyLayout& layout, const IndexPage& page, uint32_t* buffer);

// scores_TS[t][s] = scales[s] * sum_j w[t][j] relu(q[t][j] . k[s]) of the page's 64 keys, [T][64]:
// sums over x in amx_tile.h's order and then over heads, in order. `heads` as packed, `w_TJ` the
// queries' weights. A TileShape of sixteen columns and tile_rows_of_queries() is alive.
struct TiledQueries {
  const uint32_t* heads;
  const float* const* w_TJ;
  int64_t num_queries, num_heads, dim;
};
void score_tiled_keys(const TiledQueries& queries, const PairedKeys& keys, float* scores_TS);

}  // namespace fathom::kernels
