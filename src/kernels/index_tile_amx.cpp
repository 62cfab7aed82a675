#include "kernels/index_tile_amx.h"

#include <algorithm>
#include <bit>

#include "kernels/amx_tile.h"
#include "kernels/bf16_octet.h"
#include "kernels/e4m3_bits_amx.h"
#include "kernels/tile.h"

namespace fathom::kernels {
namespace {

// Of packed heads and keys: pair_keys() writes as far as this, of some formats further.
int64_t num_k_tiles(int64_t dim) { return ceil_div(dim, kAmxK); }

// Of rows of keys, which are widened by 64 numbers, and of the heads in columns that meet them.
int64_t num_row_tiles(int64_t dim) { return round_up(dim, 2 * kAmxK) / kAmxK; }

}  // namespace

// Whole pairs of tiles: [heads / 16][k / 32][16 heads][16 pairs].
int64_t tiled_heads_size(int64_t num_heads, int64_t dim) {
  return round_up(num_heads, 2 * kAmxRows) / kAmxRows * num_k_tiles(dim) * kTileWords;
}

// [queries / 4][k / 32][16 pairs][4 queries][4 heads], the queries' tiles by twos.
int64_t column_heads_size(int64_t num_queries, int64_t dim) {
  return round_up(num_queries, 2 * kColumnQueries) / kColumnQueries * num_row_tiles(dim) *
         kTileWords;
}
int64_t column_weights_size(int64_t num_queries) {
  return round_up(num_queries, 2 * kColumnQueries) * kColumnHeads;
}
int64_t key_rows_size(int64_t dim) { return kIndexTileKeys * num_row_tiles(dim) * kAmxK; }

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
  clear_sums();
  multiply_two_by_two({heads, heads + num_k * kTileWords, 64, kTileBytes},
                      {keys, keys + kAmxCols, kKeyBytes, kAmxPairs * kKeyBytes}, num_k);
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

namespace {

// What two tiles of keys gave for one or two of queries: [queries][keys][16][columns].
FATHOM_INLINE void multiply_keys(const IndexKeyRows& keys, const uint32_t* heads, int64_t num_k,
                                 bool has_second, int64_t columns, Products& out) {
  const auto* const rows = static_cast<const std::byte*>(keys.data);
  const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(float));
  clear_sums();
  for (int64_t k = 0; k < num_k; ++k) {
    const std::byte* const at = rows + k * kAmxK * sizeof(uint16_t);
    tile_load<4>(at, keys.row_bytes);
    tile_load<6>(heads + k * kTileWords, 64);
    tile_multiply<0, 4, 6>();
    tile_load<5>(at + kAmxRows * keys.row_bytes, keys.row_bytes);
    tile_multiply<1, 5, 6>();
    if (!has_second) continue;
    tile_load<7>(heads + (num_k + k) * kTileWords, 64);
    tile_multiply<2, 4, 7>();
    tile_multiply<3, 5, 7>();
  }
  tile_store<0>(out.c, row_bytes);
  tile_store<1>(out.c + kTileFloats, row_bytes);
  if (!has_second) return;
  tile_store<2>(out.c + 2 * kTileFloats, row_bytes);
  tile_store<3>(out.c + 3 * kTileFloats, row_bytes);
}

// scores[16] of one query's four columns: register v holds keys 4v to 4v + 3.
AMX_INLINE void add_four_columns(const float* c, const float* weights, const float* scales,
                                 float* scores) {
  const __m512 weight = _mm512_broadcast_f32x4(_mm_loadu_ps(weights)), zero = _mm512_setzero_ps();
  __m512 key[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v)
    key[v] = _mm512_mul_ps(_mm512_max_ps(_mm512_load_ps(c + 16 * v), zero), weight);
  // add_lanes puts part p of register v at 4p + v.
  const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  const __m512 sums = _mm512_permutexvar_ps(order, add_lanes(key));
  _mm512_storeu_ps(scores, _mm512_mul_ps(sums, _mm512_loadu_ps(scales)));
}

// Sixteen keys' scores of four queries: each one's sum over four columns of its products.
AMX_INLINE void add_columns(const float* c, const float* weights, const float* scales,
                            int64_t stride, float* scores) {
  const __m512 weight = _mm512_load_ps(weights), zero = _mm512_setzero_ps();
  __m512i sums[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    __m512 key[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v)
      key[v] =
          _mm512_mul_ps(_mm512_max_ps(_mm512_load_ps(c + (4 * i + v) * kAmxCols), zero), weight);
    sums[i] = _mm512_castps_si512(add_lanes(key));
  }
  transpose_parts(sums);
#pragma GCC unroll 4
  for (int64_t query = 0; query < kColumnQueries; ++query)
    _mm512_storeu_ps(scores + query * stride,
                     _mm512_mul_ps(_mm512_castsi512_ps(sums[query]), _mm512_loadu_ps(scales)));
}

// Row i of a tile, of which the last stands in for those that are missing.
struct KeyRows {
  const std::byte* first;
  int64_t count, row_bytes;

  const std::byte* operator[](int64_t i) const {
    return first + std::min(i, count - 1) * row_bytes;
  }
};

// Whole 64 numbers of each row, two rows at a time.
AMX_KERNEL void widen_e4m3_rows(const KeyRows& rows, int64_t dim, uint16_t* out) {
  const int64_t width = num_row_tiles(dim) * kAmxK;
  const E4M3BitWidener table = e4m3_bit_widener();
  const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);  // widening puts them right again
  for (int64_t i = 0; i < kIndexTileKeys; i += 2, out += 2 * width)
    for (int64_t x = 0; x < dim; x += 2 * kAmxK) {
      const __mmask64 mask = dim - x >= 64 ? ~__mmask64{0} : (__mmask64{1} << (dim - x)) - 1;
      __m512i bytes[2], wide[2][2];
      for (int row = 0; row < 2; ++row)
        bytes[row] =
            _mm512_permutexvar_epi64(order, _mm512_maskz_loadu_epi8(mask, rows[i + row] + x));
      widen_e4m3_bits<false>(table, _mm512_setzero_si512(), bytes, wide);
      for (int row = 0; row < 2; ++row) {
        _mm512_store_si512(out + row * width + x, wide[row][0]);
        _mm512_store_si512(out + row * width + x + kAmxK, wide[row][1]);
      }
    }
}

AMX_KERNEL void copy_bf16_rows(const KeyRows& rows, int64_t dim, uint16_t* out) {
  const int64_t width = num_row_tiles(dim) * kAmxK;
  for (int64_t i = 0; i < kIndexTileKeys; ++i, out += width)
    for (int64_t x = 0; x < width; x += kAmxK) {
      const int64_t count = std::clamp<int64_t>(dim - x, 0, 32);
      const auto mask = static_cast<__mmask32>((uint64_t{1} << count) - 1);
      _mm512_store_si512(out + x, _mm512_maskz_loadu_epi16(mask, rows[i] + 2 * x));
    }
}

}  // namespace

void set_column_heads(const float* q_JX, std::span<const float> w_J, int64_t dim, int64_t i,
                      uint32_t* heads, float* weights) {
  const int64_t num_heads = std::ssize(w_J), num_k = num_row_tiles(dim);
  heads += i / kColumnQueries * num_k * kTileWords;
  for (int64_t j = 0; j < num_heads; ++j) {
    const int64_t column = i % kColumnQueries * kColumnHeads + j;
    weights[i * kColumnHeads + j] = w_J[j];
    for (int64_t x = 0; x < dim; ++x) {
      uint32_t& pair = heads[x / kAmxK * kTileWords + x % kAmxK / 2 * kAmxCols + column];
      const uint32_t bits = std::bit_cast<uint32_t>(q_JX[j * dim + x]);
      pair |= x % 2 ? bits & 0xffff0000u : bits >> 16;
    }
  }
}

IndexKeyRows load_key_rows(const PagedRows& k_SX, int64_t first, int64_t count, uint16_t* copy,
                           float (&scales)[kIndexTileKeys]) {
  const RowLayout& layout = k_SX.layout;
  const int64_t dim = layout.dim(), bytes = layout.num_bytes();
  prefetch_index_keys(k_SX, first + 2 * kIndexTileKeys);
  load_index_scales(k_SX, first, count, scales);
  const std::byte* const begin = k_SX[first];
  if (layout.format == RowFormat::kBF16 && count == kIndexTileKeys && dim % (2 * kAmxK) == 0)
    return {begin, bytes};
  const KeyRows rows{begin, count, bytes};
  layout.format == RowFormat::kFP8 ? widen_e4m3_rows(rows, dim, copy)
                                   : copy_bf16_rows(rows, dim, copy);
  return {copy, num_row_tiles(dim) * kAmxK * static_cast<int64_t>(sizeof *copy)};
}

AMX_KERNEL void score_columns(const uint32_t* heads, const float* weights, int64_t num_queries,
                              int64_t dim, const IndexKeyRows& keys, const float* scales,
                              int64_t stride, float* scores) {
  const int64_t num_k = num_row_tiles(dim), columns = score_columns_width(num_queries);
  Products products;
  if (columns == kColumnHeads) {
    multiply_keys(keys, heads, num_k, false, columns, products);
    for (int64_t part = 0; part < 2; ++part)
      add_four_columns(products.c + part * kTileFloats, weights, scales + part * kAmxRows,
                       scores + part * kAmxRows);
    return;
  }
  for (int64_t i = 0; i < num_queries; i += 2 * kColumnQueries) {
    multiply_keys(keys, heads + i / kColumnQueries * num_k * kTileWords, num_k,
                  i + kColumnQueries < num_queries, columns, products);
    for (int64_t part = 0; part < 4; ++part) {
      const int64_t query = i + part / 2 * kColumnQueries, key = part % 2 * kAmxRows;
      if (query < num_queries)
        add_columns(products.c + part * kTileFloats, weights + query * kColumnHeads, scales + key,
                    stride, scores + query * stride + key);
    }
  }
}

#else

// Never called: has_amx() is false.
void tile_heads(const float*, int64_t, int64_t, uint32_t*) {}
void score_amx_tile(const PackedQuery<uint32_t>&, const uint32_t*, const float*,
                    float (&)[kIndexTileKeys]) {}
void set_column_heads(const float*, std::span<const float>, int64_t, int64_t, uint32_t*, float*) {}
IndexKeyRows load_key_rows(const PagedRows&, int64_t, int64_t, uint16_t*,
                           float (&)[kIndexTileKeys]) {
  return {};
}
void score_columns(const uint32_t*, const float*, int64_t, int64_t, const IndexKeyRows&,
                   const float*, int64_t, float*) {}

#endif

}  // namespace fathom::kernels
