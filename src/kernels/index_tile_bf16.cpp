#include "kernels/index_tile_bf16.h"

#include <algorithm>
#include <cstring>

#include "kernels/bf16_tile.h"
#include "kernels/fp8.h"

namespace fathom::kernels {

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
int64_t paired_keys_size(int64_t dim) { return (dim + 63) / 64 * 32 * kIndexTileKeys; }

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

// Fetches the rows that the tile after next takes while this one is computed: pages lie anywhere,
// so the processor's own prefetching stops at their ends.
void prefetch_rows(const PagedRows& rows, int64_t first, int64_t count) {
  const int64_t bytes = rows.layout.num_bytes();
  const int64_t end = std::min(first + count, rows.num_rows);
  for (int64_t s = first; s < end; ++s)
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(rows[s] + at);
}

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
  prefetch_rows(k_SX, first + 2 * kIndexTileKeys, kIndexTileKeys);
  for (int64_t part = 0; part < kIndexTileKeys; part += kPairLanes) {
    const std::byte* rows[kPairLanes];
    for (int64_t i = 0; i < kPairLanes; ++i) {
      rows[i] = k_SX[first + std::min(part + i, count - 1)];
      scales[part + i] = 1;
      if (is_fp8) std::memcpy(scales + part + i, rows[i] + dim, sizeof *scales);
    }
    if (is_fp8) widen_columns_e4m3(rows, dim, keys + part);
    if (!is_fp8) columns_of_bf16(rows, dim, keys + part);
  }
}

BF16_KERNEL void score_paired_tile(const PairedQuery& query, const uint32_t* keys,
                                   const float* scales, float (&scores)[kIndexTileKeys]) {
  const int64_t pairs = num_pairs(query.dim);
  __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  const uint32_t* heads = query.heads;
  for (int64_t j = 0, size; j < query.num_heads; j += size, heads += size * pairs) {
    size = pair_tile_rows(query.num_heads - j);
    const int64_t count = query.num_heads - j;
    if (size == 12) add_heads<12>(heads, query.w_J + j, count, pairs, keys, total);
    if (size == 8) add_heads<8>(heads, query.w_J + j, count, pairs, keys, total);
  }
  _mm512_storeu_ps(scores, _mm512_mul_ps(total[0], _mm512_loadu_ps(scales)));
  _mm512_storeu_ps(scores + kPairLanes,
                   _mm512_mul_ps(total[1], _mm512_loadu_ps(scales + kPairLanes)));
}

#else

// Never called: can_pair_index_keys() is false.
void pair_heads(const float*, int64_t, int64_t, uint32_t*) {}
void pair_keys(const PagedRows&, int64_t, int64_t, uint32_t*, float (&)[kIndexTileKeys]) {}
void score_paired_tile(const PairedQuery&, const uint32_t*, const float*,
                       float (&)[kIndexTileKeys]) {}

#endif

}  // namespace fathom::kernels
