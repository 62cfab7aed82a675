#include "kernels/index_tile_amx.h"

#include <algorithm>

#include "kernels/amx_tile.h"
#include "kernels/e4m3_bits_amx.h"
#include "kernels/tile.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kPairedRows = 2 * kAmxRows;
constexpr int64_t kPagePairs = kPageRows;  // words of a pair of all keys

int64_t num_k_tiles(int64_t dim) { return ceil_div(dim, kAmxK); }

}  // namespace

int64_t tiled_head_rows(int64_t num_heads) {
  for (const int64_t rows : {4, 8, 16})
    if (num_heads <= rows) return rows;
  return round_up(num_heads, kPairedRows);
}

int64_t tile_rows_of_queries(int64_t num_queries, int64_t num_heads) {
  return std::min(num_queries * tiled_head_rows(num_heads), kAmxRows);
}

// [rows / 16][k / 32][16 rows][16 pairs], tiles of rows by twos.
int64_t tiled_heads_size(int64_t num_queries, int64_t num_heads, int64_t dim) {
  return round_up(num_queries * tiled_head_rows(num_heads), kPairedRows) / kAmxRows *
         num_k_tiles(dim) * kTileWords;
}

int64_t tiled_keys_size(int64_t dim) { return num_k_tiles(dim) * kAmxPairs * kPagePairs; }

#if FATHOM_HAS_AMX_KERNELS

namespace {

constexpr int64_t kTileFloats = kAmxRows * kAmxCols;
constexpr int64_t kWordBytes = sizeof(uint32_t);

constexpr int64_t kKeyTiles = kPageRows / kAmxCols;
constexpr int64_t kRowBytes = kPagePairs * kWordBytes;

// What two tiles of heads gave for two of keys, [heads][keys][16][16]; or one for a whole page's.
struct Products {
  alignas(64) float c[kKeyTiles * kTileFloats];
};

void multiply_two_tiles(const uint32_t* heads, const uint32_t* keys, int64_t num_k, Products& out) {
  clear_sums();
  multiply_two_by_two({heads, heads + num_k * kTileWords, 64, kTileBytes},
                      {keys, keys + kAmxCols, kRowBytes, kAmxPairs * kRowBytes}, num_k);
  tile_store<0>(out.c, 64);
  tile_store<1>(out.c + kTileFloats, 64);
  tile_store<2>(out.c + 2 * kTileFloats, 64);
  tile_store<3>(out.c + 3 * kTileFloats, 64);
}

// Four products that do not wait for each other.
void multiply_one_tile(const uint32_t* heads, const uint32_t* keys, int64_t num_k, Products& out) {
  clear_sums();
  for (int64_t k = 0; k < num_k; ++k, heads += kTileWords, keys += kAmxPairs * kPagePairs) {
    tile_load<4>(heads, 64);
    tile_load<6>(keys, kRowBytes);
    tile_multiply<0, 4, 6>();
    tile_load<7>(keys + kAmxCols, kRowBytes);
    tile_multiply<1, 4, 7>();
    tile_load<6>(keys + 2 * kAmxCols, kRowBytes);
    tile_multiply<2, 4, 6>();
    tile_load<7>(keys + 3 * kAmxCols, kRowBytes);
    tile_multiply<3, 4, 7>();
  }
  tile_store<0>(out.c, 64);
  tile_store<1>(out.c + kTileFloats, 64);
  tile_store<2>(out.c + 2 * kTileFloats, 64);
  tile_store<3>(out.c + 3 * kTileFloats, 64);
}

// total += w[j] relu(product) over `count` heads, whose products with some keys lie at `c`, those
// with the next sixteen keys a tile further, in order.
AMX_INLINE void add_heads(const float* c, const float* w, int64_t count, __m512 (&total)[2]) {
  for (int64_t j = 0; j < count; ++j, c += kAmxCols) {
    const __m512 weight = _mm512_set1_ps(w[j]), zero = _mm512_setzero_ps();
    total[0] = _mm512_fmadd_ps(weight, _mm512_max_ps(_mm512_load_ps(c), zero), total[0]);
    total[1] =
        _mm512_fmadd_ps(weight, _mm512_max_ps(_mm512_load_ps(c + kTileFloats), zero), total[1]);
  }
}

AMX_INLINE void store_scores(const __m512 (&total)[2], const float* scales, float* scores) {
  for (int64_t v = 0; v < 2; ++v)
    _mm512_storeu_ps(scores + v * kAmxCols,
                     _mm512_mul_ps(total[v], _mm512_loadu_ps(scales + v * kAmxCols)));
}

// Queries whose heads share tiles, a tile of them against the whole page.
AMX_INLINE void score_shared_tiles(const TiledQueries& queries, const PairedKeys& keys,
                                   float* scores) {
  const int64_t num_k = num_k_tiles(queries.dim), rows = tiled_head_rows(queries.num_heads);
  const int64_t at_once = kAmxRows / rows;
  Products products;
  for (int64_t t = 0; t < queries.num_queries; t += at_once) {
    multiply_one_tile(queries.heads + t / at_once * num_k * kTileWords, keys.pairs, num_k,
                      products);
    for (int64_t i = 0; i < std::min(at_once, queries.num_queries - t); ++i)
      for (int64_t s = 0; s < kPageRows; s += 2 * kAmxCols) {
        __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        add_heads(products.c + s / kAmxCols * kTileFloats + i * rows * kAmxCols,
                  queries.w_TJ[t + i], queries.num_heads, total);
        store_scores(total, keys.scales + s, scores + (t + i) * kPageRows + s);
      }
  }
}

// One query against keys s .. s + 31 of the page. The vector units add one pair of tiles' heads
// while the tile unit multiplies the next.
AMX_INLINE void score_own_tiles(const TiledQueries& queries, int64_t t, const PairedKeys& keys,
                                int64_t s, float* scores) {
  const int64_t num_k = num_k_tiles(queries.dim), num_heads = queries.num_heads;
  const int64_t pair_words = 2 * num_k * kTileWords;
  const uint32_t* heads = queries.heads + t * tiled_head_rows(num_heads) / kPairedRows * pair_words;
  Products products[2];
  __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  multiply_two_tiles(heads, keys.pairs + s, num_k, products[0]);
  int64_t turn = 0;
  for (int64_t j = 0; j < num_heads; j += kPairedRows, turn = 1 - turn) {
    heads += pair_words;
    if (j + kPairedRows < num_heads)
      multiply_two_tiles(heads, keys.pairs + s, num_k, products[1 - turn]);
    const float* const c = products[turn].c;
    const int64_t count = num_heads - j;
    add_heads(c, queries.w_TJ[t] + j, std::min(count, kAmxRows), total);
    add_heads(c + 2 * kTileFloats, queries.w_TJ[t] + j + kAmxRows,
              std::min(count - kAmxRows, kAmxRows), total);
  }
  store_scores(total, keys.scales + s, scores + t * kPageRows + s);
}

AMX_INLINE void widen_e4m3_page(const IndexPage& page, int64_t num_pairs, uint32_t* out) {
  constexpr int64_t kLine = 64;  // bytes: a pair of 32 keys
  const E4M3BitWidener table = e4m3_bit_widener();
  const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);  // widening puts them right again
  for (int64_t p = 0; p < num_pairs; ++p, out += kPagePairs) {
    __m512i bytes[2], wide[2][2];
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t at = (2 * p + half) * kLine;
      // Into the second cache: the first has few misses to spare.
      if (page.next) __builtin_prefetch(page.next + at, 0, 2);
      bytes[half] = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(page.data + at));
    }
    widen_e4m3_bits<false>(table, _mm512_setzero_si512(), bytes, wide);
    for (int64_t v = 0; v < 4; ++v) _mm512_store_si512(out + v * kAmxCols, wide[v / 2][v % 2]);
  }
}

}  // namespace

AMX_KERNEL void tile_heads(const float* q_JX, int64_t num_heads, int64_t dim, int64_t i,
                           uint32_t* heads) {
  const int64_t num_k = num_k_tiles(dim), first = i * tiled_head_rows(num_heads);
  for (int64_t j = 0; j < num_heads; ++j)
    for (int64_t k = 0; k < num_k; ++k) {
      const int64_t left = dim - k * kAmxK, row = first + j;
      const float* const from = q_JX + j * dim + k * kAmxK;
      uint32_t* const tile = heads + (row / kAmxRows * num_k + k) * kTileWords;
      _mm512_store_si512(tile + row % kAmxRows * kAmxPairs,
                         round_to_pairs(_mm512_maskz_loadu_ps(first_lanes(left), from),
                                        _mm512_maskz_loadu_ps(first_lanes(left - 16), from + 16)));
    }
}

AMX_KERNEL PairedKeys tile_keys(const IndexKeyLayout& layout, const IndexPage& page,
                                uint32_t* buffer) {
  const float* const scales = index_key_scales(layout, page.data);
  const int64_t num_pairs = layout.num_pairs(), padded = num_k_tiles(layout.dim) * kAmxPairs;
  if (layout.format == RowFormat::kBF16 && page.next)
    for (int64_t at = 0; at < layout.page_bytes(); at += 64) __builtin_prefetch(page.next + at);
  if (layout.format == RowFormat::kBF16 && num_pairs == padded)
    return {reinterpret_cast<const uint32_t*>(page.data), scales};
  if (layout.format == RowFormat::kFP8)
    widen_e4m3_page(page, num_pairs, buffer);
  else
    std::copy_n(page.data, layout.page_bytes(), reinterpret_cast<std::byte*>(buffer));
  std::fill(buffer + num_pairs * kPagePairs, buffer + padded * kPagePairs, 0u);
  return {buffer, scales};
}

AMX_KERNEL void score_tiled_keys(const TiledQueries& queries, const PairedKeys& keys,
                                 float* scores_TS) {
  if (tiled_head_rows(queries.num_heads) < kPairedRows)
    return score_shared_tiles(queries, keys, scores_TS);
  for (int64_t s = 0; s < kPageRows; s += 2 * kAmxCols)
    for (int64_t t = 0; t < queries.num_queries; ++t)
      score_own_tiles(queries, t, keys, s, scores_TS);
}

#else

// Never called: has_amx() is false.
void tile_heads(const float*, int64_t, int64_t, int64_t, uint32_t*) {}
PairedKeys tile_keys(const IndexKeyLayout&, const IndexPage&, uint32_t*) { return {}; }
void score_tiled_keys(const TiledQueries&, const PairedKeys&, float*) {}

#endif

}  // namespace fathom::kernels
