// The lightning indexer's tile on AVX512-BF16: one query's heads against a page of keys. For
// lightning_indexer.cpp, which decides where it may be used.
#pragma once

#include <cstdint>

#include "kernels/index_key_pages.h"

namespace fathom::kernels {

// Whether this machine and the keys' format allow the tile: values that bf16 holds exactly (BF16,
// or FP8 with one scale a key).
bool can_pair_index_keys(const IndexKeyLayout& layout);

// Whether bf16 holds each of x exactly, and none as a subnormal, which its dot products drop.
bool is_exact_in_bf16(const float* x, int64_t count);

// A page of keys, and the page that is read after it or null: whoever goes through this one asks
// for that one's lines, since pages lie anywhere and the processor's own prefetching stops at their
// ends. (Not pair_keys() of BF16, which goes through nothing.)
struct IndexPage {
  const std::byte* data;
  const std::byte* next;
};

// A page's keys as pairs of bf16, [X / 2][64], where they lie or in a buffer, and their 64 scales.
struct PairedKeys {
  const uint32_t* pairs;
  const float* scales;
};

// Words of 32 bits that the pairs of a page take in a buffer.
int64_t paired_keys_size(int64_t dim);

PairedKeys pair_keys(const IndexKeyLayout& layout, const IndexPage& page, uint32_t* buffer);

// The page's scales, of which BF16 has none.
const float* index_key_scales(const IndexKeyLayout& layout, const std::byte* page);

// Words that the packed heads of a query take.
int64_t paired_heads_size(int64_t num_heads, int64_t dim);

void pair_heads(const float* q_JX, int64_t num_heads, int64_t dim, uint32_t* heads);

// One query's heads, as packed, and weights.
struct PackedQuery {
  const uint32_t* heads;
  const float* w_J;
  int64_t num_heads, dim;
};

// scores[i] = scales[i] * sum_j w[j] relu(q[j] . k[i]): sums over pairs of x and then over heads,
// in order.
void score_paired_keys(const PackedQuery& query, const PairedKeys& keys,
                       float (&scores)[kPageRows]);

// The same bits for few heads, straight from the page: for a query alone, whose keys nobody else
// needs widened.
inline constexpr int64_t kFewIndexHeads = 6;
void score_page(const PackedQuery& query, const IndexKeyLayout& layout, const IndexPage& page,
                float (&scores)[kPageRows]);

}  // namespace fathom::kernels
