// The lightning indexer's tile on AVX512-BF16: one query's heads against 32 keys. For
// lightning_indexer.cpp, which decides where it may be used.
#pragma once

#include <cstdint>

#include "kernels/paged_rows.h"

namespace fathom::kernels {

inline constexpr int64_t kIndexTileKeys = 32;

// Whether this machine and the keys' format allow the tile: values that bf16 holds exactly (BF16,
// or FP8 with one scale a key).
bool can_pair_index_keys(const RowLayout& layout);

// Whether bf16 holds each of x exactly, and none as a subnormal, which its dot products drop.
bool is_exact_in_bf16(const float* x, int64_t count);

// Fetches the tile after next while this one is computed: pages lie anywhere, so the processor's
// own prefetching stops at their ends.
void prefetch_index_keys(const PagedRows& rows, int64_t first);

// Of keys first .. first + count - 1; one where the format has none.
void load_index_scales(const PagedRows& rows, int64_t first, int64_t count,
                       float (&scales)[kIndexTileKeys]);

// Few heads have a form of their own, in which keys need not be transposed: that would take longer
// than the products. Sums in another order, so a model has the one or the other.
inline constexpr int64_t kFewIndexHeads = 6;

// Number of pairs that the packed heads of a query take, and a tile of keys.
int64_t paired_heads_size(int64_t num_heads, int64_t dim);
int64_t paired_keys_size(int64_t dim);

void pair_heads(const float* q_JX, int64_t num_heads, int64_t dim, uint32_t* heads);

// Keys first .. first + count - 1 (count <= 32, first a multiple of 32), widened and transposed,
// and their scales. Missing keys repeat the last.
void pair_keys(const PagedRows& k_SX, int64_t first, int64_t count, uint32_t* keys,
               float (&scales)[kIndexTileKeys]);

// One query's heads, as packed, and weights.
template <typename Word>
struct PackedQuery {
  const Word* heads;
  const float* w_J;
  int64_t num_heads, dim;
};

// scores[i] = scales[i] * sum_j w[j] relu(q[j] . k[i]): sums over pairs of x and then over heads,
// in order.
void score_paired_tile(const PackedQuery<uint32_t>& query, const uint32_t* keys,
                       const float* scales, float (&scores)[kIndexTileKeys]);

// The same for few heads, with sums over octets of x: numbers of bf16 that heads and keys take.
int64_t few_heads_size(int64_t num_heads, int64_t dim);
int64_t octet_keys_size(int64_t dim);

void round_heads(const float* q_JX, int64_t num_heads, int64_t dim, uint16_t* heads);

void load_octet_keys(const PagedRows& k_SX, int64_t first, int64_t count, uint16_t* keys,
                     float (&scales)[kIndexTileKeys]);

void score_octet_tile(const PackedQuery<uint16_t>& query, const uint16_t* keys, const float* scales,
                      float (&scores)[kIndexTileKeys]);

}  // namespace fathom::kernels
