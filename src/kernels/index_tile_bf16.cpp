#include "kernels/index_tile_bf16.h"

#include <array>
#include <bit>

#include "kernels/bf16_dot.h"
#include "kernels/bf16_tile.h"

namespace fathom::kernels {

bool can_pair_index_keys(const IndexKeyLayout& layout) {
  const bool is_exact = layout.format == RowFormat::kBF16 ||
                        (layout.format == RowFormat::kFP8 && layout.num_groups() == 1);
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

int64_t paired_keys_size(int64_t dim) { return num_pairs(dim) * kPageRows; }

const float* index_key_scales(const IndexKeyLayout& layout, const std::byte* page) {
  static constexpr auto kOnes = [] {
    std::array<float, kPageRows> ones{};
    ones.fill(1.0f);
    return ones;
  }();
  if (layout.format != RowFormat::kFP8) return kOnes.data();
  return reinterpret_cast<const float*>(page + layout.scales_offset());
}

#if FATHOM_HAS_BF16_KERNELS

namespace {

constexpr int64_t kLine = 64;  // bytes; of e4m3, a pair of 32 keys
constexpr int64_t kLineKeys = kLine / 2;
constexpr int64_t kVectors = kPageRows / kPairLanes;

// Line number `line` of this page; that of the next one is on its way.
BF16_INLINE __m512i load_line(const IndexPage& page, int64_t line) {
  if (page.next) __builtin_prefetch(page.next + line * kLine);
  return _mm512_loadu_si512(page.data + line * kLine);
}

// Pairs of heads and of a page's keys, [X / 2][kRows] and [X / 2][64].
template <int kRows>
BF16_INLINE void add_heads(const uint32_t* heads, const float* w, int64_t count, int64_t pairs,
                           const uint32_t* keys, __m512 (&total)[2]) {
  __m512 dot[kRows][2];
  clear(dot);
  multiply_pairs<kRows>(heads, keys, kPageRows, pairs, dot);
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
    const __m512 weight = _mm512_set1_ps(i < count ? w[i] : 0.0f);
    total[0] = _mm512_fmadd_ps(weight, _mm512_max_ps(dot[i][0], _mm512_setzero_ps()), total[0]);
    total[1] = _mm512_fmadd_ps(weight, _mm512_max_ps(dot[i][1], _mm512_setzero_ps()), total[1]);
  }
}

// Sixty-four keys' pairs. Of e4m3 each half of them is left as it is widened: keys 0 to 3, 8 to 11,
// ... 24 to 27, then 4 to 7, ... 28 to 31.
template <bool kIsFP8>
BF16_INLINE void load_pairs(const IndexPage& page, int64_t pair, const E4M3Widener& table,
                            __m512i (&keys)[kVectors]) {
  if constexpr (kIsFP8) {
    for (int64_t half = 0; half < 2; ++half) {
      __m512i parts[2];
      widen_e4m3_parts(table, load_line(page, 2 * pair + half), parts);
      keys[2 * half] = parts[0];
      keys[2 * half + 1] = parts[1];
    }
  } else {
    for (int64_t v = 0; v < kVectors; ++v) keys[v] = load_line(page, kVectors * pair + v);
  }
}

// Two registers that hold 32 keys' scores as load_pairs<true> deals them out, in order.
BF16_INLINE void put_in_order(__m512& first, __m512& second) {
  const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512 parts[2] = {first, second};
  first = _mm512_permutex2var_ps(parts[0], low, parts[1]);
  second = _mm512_permutex2var_ps(parts[0], _mm512_add_epi32(low, _mm512_set1_epi32(8)), parts[1]);
}

template <bool kIsFP8, int kHeads>
BF16_KERNEL void score_few_heads(const PackedQuery& query, const IndexPage& page,
                                 const float* scales, float* scores) {
  const int64_t stride = pair_tile_rows(kHeads), pairs = num_pairs(query.dim);
  const E4M3Widener table = e4m3_widener();
  __m512 sum[kHeads][kVectors], total[kVectors];
#pragma GCC unroll 6
  for (int j = 0; j < kHeads; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[j][v] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p) {
    __m512i keys[kVectors];
    load_pairs<kIsFP8>(page, p, table, keys);
#pragma GCC unroll 6
    for (int j = 0; j < kHeads; ++j) {
      const __m512i head = _mm512_set1_epi32(static_cast<int>(query.heads[p * stride + j]));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[j][v] = dot_pairs(sum[j][v], head, keys[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    total[v] = _mm512_setzero_ps();
#pragma GCC unroll 6
    for (int j = 0; j < kHeads; ++j)
      total[v] = _mm512_fmadd_ps(_mm512_set1_ps(query.w_J[j]),
                                 _mm512_max_ps(sum[j][v], _mm512_setzero_ps()), total[v]);
  }
  if constexpr (kIsFP8) {
    put_in_order(total[0], total[1]);
    put_in_order(total[2], total[3]);
  }
#pragma GCC unroll 4
  for (int64_t v = 0; v < kVectors; ++v)
    _mm512_storeu_ps(scores + v * kPairLanes,
                     _mm512_mul_ps(total[v], _mm512_loadu_ps(scales + v * kPairLanes)));
}

template <bool kIsFP8>
BF16_INLINE void score_few(const PackedQuery& query, const IndexPage& page, const float* scales,
                           float* scores) {
  switch (query.num_heads) {
    case 1:
      return score_few_heads<kIsFP8, 1>(query, page, scales, scores);
    case 2:
      return score_few_heads<kIsFP8, 2>(query, page, scales, scores);
    case 3:
      return score_few_heads<kIsFP8, 3>(query, page, scales, scores);
    case 4:
      return score_few_heads<kIsFP8, 4>(query, page, scales, scores);
    case 5:
      return score_few_heads<kIsFP8, 5>(query, page, scales, scores);
    default:
      return score_few_heads<kIsFP8, 6>(query, page, scales, scores);
  }
}

}  // namespace

BF16_KERNEL void pair_heads(const float* q_JX, int64_t num_heads, int64_t dim, uint32_t* heads) {
  pack_pair_rows(q_JX, num_heads, dim, dim, heads);
}

BF16_KERNEL PairedKeys pair_keys(const IndexKeyLayout& layout, const IndexPage& page,
                                 uint32_t* buffer) {
  const float* const scales = index_key_scales(layout, page.data);
  if (layout.format == RowFormat::kBF16)
    return {reinterpret_cast<const uint32_t*>(page.data), scales};
  const E4M3Widener table = e4m3_widener();
  for (int64_t line = 0; line < 2 * layout.num_pairs(); ++line) {
    __m512i pairs[2];
    widen_e4m3(table, load_line(page, line), pairs);
    _mm512_storeu_si512(buffer + line * kLineKeys, pairs[0]);
    _mm512_storeu_si512(buffer + line * kLineKeys + kPairLanes, pairs[1]);
  }
  return {buffer, scales};
}

BF16_KERNEL void score_paired_keys(const PackedQuery& query, const PairedKeys& keys,
                                   float (&scores)[kPageRows]) {
  if (query.num_heads <= kFewIndexHeads)
    return score_few<false>(query, {reinterpret_cast<const std::byte*>(keys.pairs), nullptr},
                            keys.scales, scores);
  const int64_t pairs = num_pairs(query.dim);
  for (int64_t s = 0; s < kPageRows; s += kPairTileCols) {
    __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    const uint32_t* heads = query.heads;
    for (int64_t j = 0, size; j < query.num_heads; j += size, heads += size * pairs) {
      size = pair_tile_rows(query.num_heads - j);
      const int64_t count = query.num_heads - j;
      if (size == 12) add_heads<12>(heads, query.w_J + j, count, pairs, keys.pairs + s, total);
      if (size == 8) add_heads<8>(heads, query.w_J + j, count, pairs, keys.pairs + s, total);
      if (size == 6) add_heads<6>(heads, query.w_J + j, count, pairs, keys.pairs + s, total);
    }
    for (int64_t v = 0; v < 2; ++v)
      _mm512_storeu_ps(scores + s + v * kPairLanes,
                       _mm512_mul_ps(total[v], _mm512_loadu_ps(keys.scales + s + v * kPairLanes)));
  }
}

BF16_KERNEL void score_page(const PackedQuery& query, const IndexKeyLayout& layout,
                            const IndexPage& page, float (&scores)[kPageRows]) {
  const float* const scales = index_key_scales(layout, page.data);
  if (layout.format == RowFormat::kFP8) return score_few<true>(query, page, scales, scores);
  score_few<false>(query, page, scales, scores);
}

#else

// Never called: can_pair_index_keys() is false.
void pair_heads(const float*, int64_t, int64_t, uint32_t*) {}
PairedKeys pair_keys(const IndexKeyLayout&, const IndexPage&, uint32_t*) { return {}; }
void score_paired_keys(const PackedQuery&, const PairedKeys&, float (&)[kPageRows]) {}
void score_page(const PackedQuery&, const IndexKeyLayout&, const IndexPage&, float (&)[kPageRows]) {
}

#endif

}  // namespace fathom::kernels
