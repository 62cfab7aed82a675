#include "kernels/index_tile_bf16.h"

#include <algorithm>
#include <cstring>

#include "kernels/bf16_octet.h"
#include "kernels/bf16_tile.h"
#include "kernels/fp8.h"

namespace fathom::kernels {
namespace {

int64_t padded_dim(int64_t dim) { return (dim + 63) / 64 * 64; }

}  // namespace

bool can_pair_index_keys(const RowLayout& layout) {
  const bool is_exact =
      layout.format == RowFormat::kBF16 ||
      (layout.format == RowFormat::kFP8 && layout.exact == 0 && layout.quantised <= kQuantGroup);
  return has_bf16_dot() && is_exact;
}

KERNEL bool is_exact_in_bf16(const float* x, int64_t count) {
  uint32_t lost = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(x[i]);
    const bool is_subnormal = (bits & 0x7f800000u) == 0 && (bits & 0x007fffffu) != 0;
    lost |= (bits & 0xffffu) | static_cast<uint32_t>(is_subnormal);
  }
  return lost == 0;
}

int64_t paired_heads_size(int64_t num_heads, int64_t dim) {
  return round_up_to_pair_tiles(num_heads) * num_pairs(dim);
}

// Columns come in blocks of 32 pairs.
int64_t paired_keys_size(int64_t dim) { return padded_dim(dim) / 2 * kIndexTileKeys; }

// Rows end after whole blocks of 64.
int64_t few_heads_size(int64_t num_heads, int64_t dim) { return num_heads * padded_dim(dim); }
int64_t octet_keys_size(int64_t dim) { return kIndexTileKeys * padded_dim(dim); }

// A tile's rows follow each other in one page.
static_assert(kPageRows % kIndexTileKeys == 0);

void prefetch_index_keys(const PagedRows& rows, int64_t first) {
  const int64_t count = std::min(kIndexTileKeys, rows.num_rows - first);
  const int64_t bytes = count * rows.layout.num_bytes();
  if (count <= 0) return;
  const std::byte* const begin = rows[first];
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(begin + at);
}

void load_index_scales(const PagedRows& rows, int64_t first, int64_t count,
                       float (&scales)[kIndexTileKeys]) {
  std::fill_n(scales, kIndexTileKeys, 1.0f);
  if (rows.layout.format != RowFormat::kFP8) return;
  const std::byte* const begin = rows[first] + rows.layout.dim();
  const int64_t bytes = rows.layout.num_bytes();
  for (int64_t i = 0; i < count; ++i) std::memcpy(scales + i, begin + i * bytes, sizeof *scales);
}

#if FATHOM_HAS_BF16_KERNELS

namespace {

// The four bytes in each 32-bit lane as two pairs of bf16.
BF16_INLINE void widen_lanes(const E4M3Widener& table, __m512i bytes, __m512i (&out)[2]) {
  __m512i part[2];
  widen_e4m3_parts(table, bytes, part);
  const auto low = reinterpret_cast<__m512>(part[0]), high = reinterpret_cast<__m512>(part[1]);
  out[0] = reinterpret_cast<__m512i>(_mm512_shuffle_ps(low, high, 0x88));
  out[1] = reinterpret_cast<__m512i>(_mm512_shuffle_ps(low, high, 0xdd));
}

// Sixteen rows of e4m3 as columns of pairs, `out` rows 32 pairs apart.
BF16_INLINE void widen_columns_e4m3(const std::byte* const (&rows)[kPairLanes], int64_t dim,
                                    uint32_t* out) {
  const E4M3Widener table = e4m3_widener();
  for (int64_t x = 0; x < dim; x += 64) {
    const __mmask64 mask = x + 64 <= dim ? ~0ull : (1ull << (dim - x)) - 1;
    __m512i lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = _mm512_maskz_loadu_epi8(mask, rows[i] + x);
    transpose_lanes(lanes);
    for (int i = 0; i < 16; ++i) {
      __m512i pairs[2];
      widen_lanes(table, lanes[i], pairs);
      _mm512_store_si512(out + (x / 2 + 2 * i) * kIndexTileKeys, pairs[0]);
      _mm512_store_si512(out + (x / 2 + 2 * i + 1) * kIndexTileKeys, pairs[1]);
    }
  }
}

BF16_INLINE void columns_of_bf16(const std::byte* const (&rows)[kPairLanes], int64_t dim,
                                 uint32_t* out) {
  for (int64_t x = 0; x < dim; x += 32) {
    const __mmask32 mask = x + 32 <= dim ? ~0u : (1u << (dim - x)) - 1;
    __m512i lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = _mm512_maskz_loadu_epi16(mask, rows[i] + 2 * x);
    transpose_lanes(lanes);
    for (int i = 0; i < 16; ++i) _mm512_store_si512(out + (x / 2 + i) * kIndexTileKeys, lanes[i]);
  }
}

// The sixteen keys of four rows each, v's being rows v, v + 4, v + 8 and v + 12.
BF16_INLINE void load_quarters(const std::byte* const (&rows)[4], int64_t at, int64_t bytes,
                               __m512i (&parts)[4]) {
  const __mmask64 mask = at + 64 <= bytes ? ~0ull : (1ull << (bytes - at)) - 1;
  for (int p = 0; p < 4; ++p) parts[p] = _mm512_maskz_loadu_epi8(mask, rows[p] + at);
  transpose_parts(parts);
}

// Four rows as octets: out[octet][4][32], of which they take one register in four.
BF16_INLINE void deal_e4m3(const std::byte* const (&rows)[4], int64_t dim, uint16_t* out) {
  const E4M3Widener table = e4m3_widener();
  for (int64_t x = 0; x < dim; x += 64) {
    __m512i parts[4];
    load_quarters(rows, x, dim, parts);
    for (int64_t i = 0; i < 4; ++i) {
      __m512i octets[2];
      widen_e4m3_parts(table, parts[i], octets);
      _mm512_store_si512(out + (x / kOctet + 2 * i) * 128, octets[0]);
      _mm512_store_si512(out + (x / kOctet + 2 * i + 1) * 128, octets[1]);
    }
  }
}

// To the end of the block of 64 numbers, as deal_e4m3().
BF16_INLINE void deal_bf16(const std::byte* const (&rows)[4], int64_t dim, uint16_t* out) {
  for (int64_t x = 0; x < padded_dim(dim); x += 32) {
    __m512i parts[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                        _mm512_setzero_si512()};
    if (x < dim) load_quarters(rows, 2 * x, 2 * dim, parts);
    for (int64_t i = 0; i < 4; ++i) _mm512_store_si512(out + (x / kOctet + i) * 128, parts[i]);
  }
}

// scales[16] * sum_j w[j] relu(q[j] . k) of sixteen keys.
template <int kHeads>
BF16_KERNEL void score_octets(const PackedQuery<uint16_t>& query, const uint16_t* keys,
                              const float* scales, float* scores) {
  const int64_t stride = padded_dim(query.dim);
  __m512 sum[kHeads][4], total = _mm512_setzero_ps();
#pragma GCC unroll 6
  for (int j = 0; j < kHeads; ++j)
    for (int v = 0; v < 4; ++v) sum[j][v] = _mm512_setzero_ps();
  for (int64_t x = 0; x < stride; x += kOctet, keys += 128) {
    __m512i key[4];
    for (int v = 0; v < 4; ++v) key[v] = _mm512_load_si512(keys + v * 32);
#pragma GCC unroll 6
    for (int j = 0; j < kHeads; ++j) {
      const __m512i head = broadcast_octet(query.heads + j * stride + x);
      for (int v = 0; v < 4; ++v) sum[j][v] = dot_pairs(sum[j][v], head, key[v]);
    }
  }
#pragma GCC unroll 6
  for (int j = 0; j < kHeads; ++j)
    total = _mm512_fmadd_ps(_mm512_set1_ps(query.w_J[j]),
                            _mm512_max_ps(add_lanes(sum[j]), _mm512_setzero_ps()), total);
  _mm512_storeu_ps(scores, _mm512_mul_ps(total, _mm512_loadu_ps(scales)));
}

using ScoreOctets = void (*)(const PackedQuery<uint16_t>&, const uint16_t*, const float*, float*);
constexpr ScoreOctets kScoreOctets[kFewIndexHeads] = {score_octets<1>, score_octets<2>,
                                                      score_octets<3>, score_octets<4>,
                                                      score_octets<5>, score_octets<6>};

template <int kRows>
BF16_INLINE void add_heads(const uint32_t* heads, const float* w, int64_t count, int64_t pairs,
                           const uint32_t* keys, __m512 (&total)[2]) {
  __m512 dot[kRows][2];
  clear(dot);
  multiply_pairs<kRows>(heads, keys, kIndexTileKeys, pairs, dot);
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
    const __m512 weight = _mm512_set1_ps(i < count ? w[i] : 0.0f);
    total[0] = _mm512_fmadd_ps(weight, _mm512_max_ps(dot[i][0], _mm512_setzero_ps()), total[0]);
    total[1] = _mm512_fmadd_ps(weight, _mm512_max_ps(dot[i][1], _mm512_setzero_ps()), total[1]);
  }
}

}  // namespace

BF16_KERNEL void pair_heads(const float* q_JX, int64_t num_heads, int64_t dim, uint32_t* heads) {
  pack_pair_rows(q_JX, num_heads, dim, dim, heads);
}

BF16_KERNEL void pair_keys(const PagedRows& k_SX, int64_t first, int64_t count, uint32_t* keys,
                           float (&scales)[kIndexTileKeys]) {
  const int64_t dim = k_SX.layout.dim();
  const bool is_fp8 = k_SX.layout.format == RowFormat::kFP8;
  prefetch_index_keys(k_SX, first + 2 * kIndexTileKeys);
  load_index_scales(k_SX, first, count, scales);
  const std::byte* const begin = k_SX[first];
  const int64_t bytes = k_SX.layout.num_bytes();
  for (int64_t part = 0; part < kIndexTileKeys; part += kPairLanes) {
    const std::byte* rows[kPairLanes];
    for (int64_t i = 0; i < kPairLanes; ++i)
      rows[i] = begin + std::min(part + i, count - 1) * bytes;
    if (is_fp8) widen_columns_e4m3(rows, dim, keys + part);
    if (!is_fp8) columns_of_bf16(rows, dim, keys + part);
  }
}

BF16_KERNEL void score_paired_tile(const PackedQuery<uint32_t>& query, const uint32_t* keys,
                                   const float* scales, float (&scores)[kIndexTileKeys]) {
  const int64_t pairs = num_pairs(query.dim);
  __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  const uint32_t* heads = query.heads;
  for (int64_t j = 0, size; j < query.num_heads; j += size, heads += size * pairs) {
    size = pair_tile_rows(query.num_heads - j);
    const int64_t count = query.num_heads - j;
    if (size == 12) add_heads<12>(heads, query.w_J + j, count, pairs, keys, total);
    if (size == 8) add_heads<8>(heads, query.w_J + j, count, pairs, keys, total);
    if (size == 6) add_heads<6>(heads, query.w_J + j, count, pairs, keys, total);
  }
  _mm512_storeu_ps(scores, _mm512_mul_ps(total[0], _mm512_loadu_ps(scales)));
  _mm512_storeu_ps(scores + kPairLanes,
                   _mm512_mul_ps(total[1], _mm512_loadu_ps(scales + kPairLanes)));
}

BF16_KERNEL void round_heads(const float* q_JX, int64_t num_heads, int64_t dim, uint16_t* heads) {
  for (int64_t j = 0; j < num_heads; ++j)
    round_row(q_JX + j * dim, dim, padded_dim(dim), heads + j * padded_dim(dim));
}

BF16_KERNEL void load_octet_keys(const PagedRows& k_SX, int64_t first, int64_t count,
                                 uint16_t* keys, float (&scales)[kIndexTileKeys]) {
  const int64_t dim = k_SX.layout.dim(), bytes = k_SX.layout.num_bytes();
  const bool is_fp8 = k_SX.layout.format == RowFormat::kFP8;
  prefetch_index_keys(k_SX, first + 2 * kIndexTileKeys);
  load_index_scales(k_SX, first, count, scales);
  const std::byte* const begin = k_SX[first];
  for (int64_t part = 0; part < kIndexTileKeys; part += kOctetRows) {
    for (int64_t v = 0; v < 4; ++v) {
      const std::byte* rows[4];
      for (int64_t p = 0; p < 4; ++p)
        rows[p] = begin + std::min(part + 4 * p + v, count - 1) * bytes;
      uint16_t* const out = keys + part * padded_dim(dim) + v * 32;
      if (is_fp8) deal_e4m3(rows, dim, out);
      if (!is_fp8) deal_bf16(rows, dim, out);
    }
  }
}

void score_octet_tile(const PackedQuery<uint16_t>& query, const uint16_t* keys, const float* scales,
                      float (&scores)[kIndexTileKeys]) {
  for (int64_t part = 0; part < kIndexTileKeys; part += kOctetRows)
    kScoreOctets[query.num_heads - 1](query, keys + part * padded_dim(query.dim), scales + part,
                                      scores + part);
}

#else

// Never called: can_pair_index_keys() is false.
void pair_heads(const float*, int64_t, int64_t, uint32_t*) {}
void pair_keys(const PagedRows&, int64_t, int64_t, uint32_t*, float (&)[kIndexTileKeys]) {}
void score_paired_tile(const PackedQuery<uint32_t>&, const uint32_t*, const float*,
                       float (&)[kIndexTileKeys]) {}
void round_heads(const float*, int64_t, int64_t, uint16_t*) {}
void load_octet_keys(const PagedRows&, int64_t, int64_t, uint16_t*, float (&)[kIndexTileKeys]) {}
void score_octet_tile(const PackedQuery<uint16_t>&, const uint16_t*, const float*,
                      float (&)[kIndexTileKeys]) {}

#endif

}  // namespace fathom::kernels
