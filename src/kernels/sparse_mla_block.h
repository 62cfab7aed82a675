// Between sparse_mla.cpp and its kernels: what a part of the keys leaves behind.
#pragma once

#include <cstdint>

#include "base/array_view.h"
#include "kernels/sparse_mla.h"

namespace fathom::kernels {

// Running softmax of all heads over the keys so far. There is memory for the heads of whole tiles
// of either kind, and in a row of sums for whole tiles of columns.
struct MlaPartial {
  View2<float> sum_HC;  // of exp(score - maximum) * value
  float* maximum;
  float* weight;  // sum of exp(score - maximum)
};

// Whether this machine and the cache's format take the bf16 kernel.
bool can_pair_latents(const RowLayout& layout);

// q_HD rounded and packed for attend_paired.
int64_t paired_queries_size(const SparseMla& io);
void pair_queries(const SparseMla& io, uint32_t* packed);

// Keys begin .. end - 1 of io's, into a fresh partial.
void attend_paired(const SparseMla& io, const uint32_t* queries, int64_t begin, int64_t end,
                   MlaPartial& partial);

// Few heads are multiplied by octets: turning keys into columns would take longer than the
// products, and most of a tile would stay empty.
inline constexpr int64_t kFewMlaHeads = 6;

// The same on AMX, few heads too: its tiles take keys as they lie.
bool can_tile_latents(const SparseMla& io);
int64_t tiled_queries_size(const SparseMla& io);
void tile_queries(const SparseMla& io, uint32_t* packed);
void attend_tiled(const SparseMla& io, const uint32_t* queries, int64_t begin, int64_t end,
                  MlaPartial& partial);

}  // namespace fathom::kernels
