#include "kernels/index_tile_amx.h"

#include <algorithm>

#include "kernels/amx_tile.h"
#include "kernels/tile.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kTileWords = kAmxRows * kAmxPairs;

// As long as the keys, which come by 64 numbers.
int64_t num_k_tiles(int64_t dim) { return round_up(dim, 2 * kAmxK) / kAmxK; }

}  // namespace

// Whole pairs of tiles: [heads / 16][k / 32][16 heads][16 pairs].
int64_t tiled_heads_size(int64_t num_heads, int64_t dim) {
  return round_up(num_heads, 2 * kAmxRows) / kAmxRows * num_k_tiles(dim) * kTileWords;
}

#if FATHOM_HAS_AMX_KERNELS

namespace {

constexpr int64_t kTileFloats = kAmxRows * kAmxCols;

// What two tiles of heads gave for two of keys: [heads][keys][16][16].
struct Products {
  alignas(64) float c[4 * kTileFloats];
};

FATHOM_INLINE void multiply_heads(const uint32_t* heads, const uint32_t* keys, int64_t num_k,
                                  Products& out) {
  constexpr int64_t kKeyBytes = kIndexTileKeys * sizeof(uint32_t);
  constexpr int64_t kRowBytes = kAmxPairs * sizeof(uint32_t);
  tile_clear<0>();
  tile_clear<1>();
  tile_clear<2>();
  tile_clear<3>();
  for (int64_t k = 0; k < num_k; ++k) {
    tile_load<4>(heads + k * kTileWords, kRowBytes);
    tile_load<6>(keys + k * kAmxPairs * kIndexTileKeys, kKeyBytes);
    tile_multiply<0, 4, 6>();
    tile_load<7>(keys + k * kAmxPairs * kIndexTileKeys + kAmxCols, kKeyBytes);
    tile_multiply<1, 4, 7>();
    tile_load<5>(heads + (num_k + k) * kTileWords, kRowBytes);
    tile_multiply<2, 5, 6>();
    tile_multiply<3, 5, 7>();
  }
  tile_store<0>(out.c, 64);
  tile_store<1>(out.c + kTileFloats, 64);
  tile_store<2>(out.c + 2 * kTileFloats, 64);
  tile_store<3>(out.c + 3 * kTileFloats, 64);
}

// total += w[j] relu(product) over `count` heads of a pair of tiles, in order.
AMX_INLINE void add_heads(const Products& products, const float* w, int64_t count,
                          __m512 (&total)[2]) {
  for (int64_t j = 0; j < std::min(count, 2 * kAmxRows); ++j) {
    const float* const c = products.c + j / kAmxRows * 2 * kTileFloats + j % kAmxRows * kAmxCols;
    const __m512 weight = _mm512_set1_ps(w[j]), zero = _mm512_setzero_ps();
    total[0] = _mm512_fmadd_ps(weight, _mm512_max_ps(_mm512_load_ps(c), zero), total[0]);
    total[1] =
        _mm512_fmadd_ps(weight, _mm512_max_ps(_mm512_load_ps(c + kTileFloats), zero), total[1]);
  }
}

}  // namespace

AMX_KERNEL void tile_heads(const float* q_JX, int64_t num_heads, int64_t dim, uint32_t* heads) {
  for (int64_t j = 0; j < round_up(num_heads, 2 * kAmxRows); ++j)
    for (int64_t k = 0; k < num_k_tiles(dim); ++k) {
      const int64_t left = j < num_heads ? dim - k * kAmxK : 0;
      const float* const from = q_JX + std::min(j, num_heads - 1) * dim + k * kAmxK;
      uint32_t* const tile = heads + (j / kAmxRows * num_k_tiles(dim) + k) * kTileWords;
      _mm512_store_si512(tile + j % kAmxRows * kAmxPairs,
                         round_to_pairs(_mm512_maskz_loadu_ps(first_lanes(left), from),
                                        _mm512_maskz_loadu_ps(first_lanes(left - 16), from + 16)));
    }
}

// The vector units add one pair of tiles' heads while the tile unit multiplies the next.
AMX_KERNEL void score_amx_tile(const PackedQuery<uint32_t>& query, const uint32_t* keys,
                               const float* scales, float (&scores)[kIndexTileKeys]) {
  const int64_t num_k = num_k_tiles(query.dim), pair_words = 2 * num_k * kTileWords;
  Products products[2];
  __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  multiply_heads(query.heads, keys, num_k, products[0]);
  int64_t turn = 0;
  for (int64_t j = 0; j < query.num_heads; j += 2 * kAmxRows, turn = 1 - turn) {
    if (j + 2 * kAmxRows < query.num_heads)
      multiply_heads(query.heads + (j / (2 * kAmxRows) + 1) * pair_words, keys, num_k,
                     products[1 - turn]);
    add_heads(products[turn], query.w_J + j, query.num_heads - j, total);
  }
  for (int v = 0; v < 2; ++v)
    _mm512_storeu_ps(scores + v * kAmxCols,
                     _mm512_mul_ps(total[v], _mm512_loadu_ps(scales + v * kAmxCols)));
}

#else

// Never called: has_amx() is false.
void tile_heads(const float*, int64_t, int64_t, uint32_t*) {}
void score_amx_tile(const PackedQuery<uint32_t>&, const uint32_t*, const float*,
                    float (&)[kIndexTileKeys]) {}

#endif

}  // namespace fathom::kernels
