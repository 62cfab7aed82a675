// The lightning indexer's tile on AMX: one query's heads, sixteen at a time, against 32 keys as
// index_tile_bf16.h packs them. For lightning_indexer.cpp, on has_amx() processors.
#pragma once

#include <cstdint>

#include "kernels/index_tile_bf16.h"

namespace fathom::kernels {

// Words of 32 bits that the packed heads of a query take.
int64_t tiled_heads_size(int64_t num_heads, int64_t dim);

void tile_heads(const float* q_JX, int64_t num_heads, int64_t dim, uint32_t* heads);

// scores[i] = scales[i] * sum_j w[j] relu(q[j] . k[i]): sums over x in amx_tile.h's order and then
// over heads, in order. Keys from pair_keys(). A TileShape of sixteen columns is alive.
void score_amx_tile(const PackedQuery<uint32_t>& query, const uint32_t* keys, const float* scales,
                    float (&scores)[kIndexTileKeys]);

}  // namespace fathom::kernels
