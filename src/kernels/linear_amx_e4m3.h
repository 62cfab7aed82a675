// linear_amx's products with W in E4M3.
#pragma once

#include "kernels/fp8.h"
#include "kernels/linear_amx_item.h"

namespace fathom::kernels {

#if FATHOM_HAS_AMX_KERNELS

inline constexpr int64_t kBlockTiles = kQuantGroup / kAmxK;  // that share a factor

// Where pair p of 64 numbers goes in the order of widened e4m3, in which x must lie.
constexpr int64_t place_of_pair(int64_t p) { return p / 4 % 2 * kAmxPairs + p / 8 * 4 + p % 4; }

// All k of an item. A row's bits depend on its own block's factors, not on those of the rows
// beside.
void multiply_e4m3(const LinearItem& item);

// Whether the factors of all of W's rows are powers of two that go into a bf16.
bool has_powers_of_two(const WeightView& w);

// For many rows of x and such factors, the bits of multiply_e4m3. Parallel.
void multiply_in_strips(const InputTiles& x, const WeightView& w, View2<float> y_MN);

#endif

}  // namespace fathom::kernels
