#include <algorithm>
#include <limits>

#include "kernels/bf16_octet.h"
#include "kernels/bf16_tile.h"
#include "kernels/latent_bf16.h"
#include "kernels/sparse_mla_block.h"
#include "kernels/tile.h"

namespace fathom::kernels {
namespace {

// What rows of bf16 are padded to.
constexpr int64_t kWidth = 32;

}  // namespace

bool can_pair_latents(const RowLayout& layout) {
  return has_bf16_dot() && layout.format != RowFormat::kF32;
}

int64_t paired_queries_size(const SparseMla& io) {
  return round_up_to_pair_tiles(io.q_HD.rows) * round_up(io.q_HD.cols, kWidth) / 2;
}

#if FATHOM_HAS_BF16_KERNELS

namespace {

// Keys whose scores and exponentials are held at once, for all heads. At V3.2's shape: values 128
// KiB, queries 150, scores 66, exponentials 33, sums 280, so that all of it stays in an L2 cache of
// 1 MiB.
constexpr int64_t kBlock = 128;
constexpr int64_t kBlockPairs = kBlock / 2;
constexpr int64_t kTile = kPairTileCols;
struct Scratch {
  uint16_t* rows;     // [32][D, padded to 32], bf16
  uint32_t* columns;  // [D / 2][32], pairs along D
  uint32_t* values;   // [C / 32][64][32], pairs of keys
  float* scores;      // [H][128]
  uint32_t* p;        // [H][64], pairs of keys
  float* rescale;     // [H]
};

Scratch reserve_scratch(const SparseMla& io) {
  static thread_local LineBuffer rows, columns, values, scores, p, rescale;
  const int64_t width = round_up(io.q_HD.cols, kWidth);
  const int64_t heads = round_up_to_pair_tiles(io.q_HD.rows);
  return {rows.reserve<uint16_t>(kTile * width),
          columns.reserve<uint32_t>(width / 2 * kTile),
          values.reserve<uint32_t>(round_up(io.out_HC.cols, kTile) * kBlockPairs),
          scores.reserve<float>(heads * kBlock),
          p.reserve<uint32_t>(heads * kBlockPairs),
          rescale.reserve<float>(heads)};
}

// Sixteen rows of bf16 as columns of pairs.
BF16_INLINE void transpose_pairs(const uint16_t* rows, int64_t width, uint32_t* out) {
  for (int64_t x = 0; x < width; x += 32) {
    __m512i lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = _mm512_loadu_si512(rows + i * width + x);
    transpose_lanes(lanes);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + (x / 2 + i) * kTile, lanes[i]);
  }
}

// Rows two by two as pairs of keys, a tile of columns after another.
BF16_INLINE void interleave_values(const uint16_t* rows, int64_t width, int64_t cols,
                                   uint32_t* values) {
  const __m512i low = low_pairs_of_rows(), high = high_pairs_of_rows();
  for (int64_t pair = 0; pair < kTile / 2; ++pair, rows += 2 * width) {
    for (int64_t c = 0; c < cols; c += kTile) {
      const __m512i even = _mm512_loadu_si512(rows + c), odd = _mm512_loadu_si512(rows + width + c);
      uint32_t* const out = values + c * kBlockPairs + pair * kTile;
      _mm512_storeu_si512(out, _mm512_permutex2var_epi16(even, low, odd));
      _mm512_storeu_si512(out + kPairLanes, _mm512_permutex2var_epi16(even, high, odd));
    }
  }
}

// 32 keys from the first-th on, as rows, as values and, for many heads, as columns; missing ones
// are zero.
BF16_KERNEL void load_keys(const SparseMla& io, int64_t first, int64_t count,
                           const Scratch& scratch, uint32_t* values) {
  const int64_t width = round_up(io.q_HD.cols, kWidth);
  for (int64_t i = 0; i < count; ++i)
    widen_to_bf16(io.latent_SD.layout, row_of(io, first + i), width, scratch.rows + i * width);
  std::fill(scratch.rows + count * width, scratch.rows + kTile * width, uint16_t{0});
  for (int64_t i = 0; i < kTile && io.q_HD.rows > kFewMlaHeads; i += kPairLanes)
    transpose_pairs(scratch.rows + i * width, width, scratch.columns + i);
  interleave_values(scratch.rows, width, io.out_HC.cols, values);
}

template <int kRows>
BF16_INLINE void score_heads(const uint32_t* queries, const uint32_t* columns, int64_t pairs,
                             float scale, float* scores) {
  __m512 dot[kRows][2];
  clear(dot);
  multiply_pairs<kRows>(queries, columns, kTile, pairs, dot);
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < 2; ++v)
      _mm512_storeu_ps(scores + i * kBlock + v * kPairLanes,
                       _mm512_mul_ps(dot[i][v], _mm512_set1_ps(scale)));
}

// scores[h][0..31] of the tile in `columns`. Fetches the next tile's rows a few at a time.
BF16_KERNEL void score_tile(const SparseMla& io, const uint32_t* queries, const uint32_t* columns,
                            Ahead ahead, float* scores) {
  const int64_t heads = io.q_HD.rows, pairs = num_pairs(io.q_HD.cols);
  for (int64_t h = 0, size; h < heads; h += size, queries += size * pairs) {
    size = pair_tile_rows(heads - h);
    ahead.fetch(kTile * size / heads + 1);
    if (size == 12) score_heads<12>(queries, columns, pairs, io.scale, scores + h * kBlock);
    if (size == 8) score_heads<8>(queries, columns, pairs, io.scale, scores + h * kBlock);
    if (size == 6) score_heads<6>(queries, columns, pairs, io.scale, scores + h * kBlock);
  }
}

// scores[h][0..7] of eight rows.
template <int kHeads>
BF16_INLINE void score_eight(const uint32_t* queries, const uint16_t* rows, int64_t width,
                             float scale, float* scores) {
  __m512 dot[kHeads + kHeads % 2][2];
  clear(dot);
  for (int64_t x = 0; x < width; x += 32) {
    __m512i octet[2][4];
    for (int v = 0; v < 2; ++v) {
      for (int p = 0; p < 4; ++p) octet[v][p] = _mm512_loadu_si512(rows + (2 * p + v) * width + x);
      transpose_parts(octet[v]);
    }
#pragma GCC unroll 4
    for (int o = 0; o < 4; ++o)
#pragma GCC unroll 6
      for (int h = 0; h < kHeads; ++h) {
        const __m512i query = broadcast_octet(queries + (h * width + x) / 2 + 4 * o);
        for (int v = 0; v < 2; ++v) dot[h][v] = dot_pairs(dot[h][v], query, octet[v][o]);
      }
  }
  // Part p of the sums holds rows 2p and 2p + 1 of one head, then of the next.
  const __m512i order = _mm512_set_epi32(15, 14, 11, 10, 7, 6, 3, 2, 13, 12, 9, 8, 5, 4, 1, 0);
#pragma GCC unroll 3
  for (int h = 0; h < kHeads; h += 2) {
    const __m512 lanes[4] = {dot[h][0], dot[h][1], dot[h + 1][0], dot[h + 1][1]};
    const __m512 sums =
        _mm512_mul_ps(_mm512_permutexvar_ps(order, add_lanes(lanes)), _mm512_set1_ps(scale));
    _mm256_storeu_ps(scores + h * kBlock, _mm512_castps512_ps256(sums));
    if (h + 1 < kHeads)
      _mm256_storeu_ps(scores + (h + 1) * kBlock, _mm512_extractf32x8_ps(sums, 1));
  }
}

// score_tile() for few heads, from the tile's rows.
template <int kHeads>
BF16_KERNEL void score_few(const SparseMla& io, const uint32_t* queries, const uint16_t* rows,
                           Ahead ahead, float* scores) {
  const int64_t width = round_up(io.q_HD.cols, kWidth);
  for (int64_t i = 0; i < kTile; i += 8) {
    ahead.fetch(8);
    score_eight<kHeads>(queries, rows + i * width, width, io.scale, scores + i);
  }
}

using ScoreFew = void (*)(const SparseMla&, const uint32_t*, const uint16_t*, Ahead, float*);
constexpr ScoreFew kScoreFew[kFewMlaHeads] = {score_few<1>, score_few<2>, score_few<3>,
                                              score_few<4>, score_few<5>, score_few<6>};

// Scores from the i-th on, minus infinity behind their end.
BF16_INLINE __m512 load_scores(const float* scores, int64_t i, int64_t count) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(-std::numeric_limits<float>::infinity()),
                              first_lanes(count - i), scores + i);
}

// p = exp(scores - maximum), rounded, of one head. Returns what the sums so far must be multiplied
// by. The weight sums what was rounded, so that the weights of values add up to one.
BF16_INLINE float exponentials(const float* scores, int64_t count, float& maximum, float& weight,
                               uint32_t* p) {
  __m512 most = _mm512_set1_ps(maximum);
  for (int64_t i = 0; i < count; i += kPairLanes)
    most = _mm512_max_ps(most, load_scores(scores, i, count));
  const float old = maximum;
  maximum = _mm512_reduce_max_ps(most);
  most = _mm512_set1_ps(maximum);
  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 2 * kPairLanes) {
    const __m512i pairs = round_to_pairs(
        exp_negative(_mm512_sub_ps(load_scores(scores, i, count), most)),
        exp_negative(_mm512_sub_ps(load_scores(scores, i + kPairLanes, count), most)));
    _mm512_storeu_si512(p + i / 2, pairs);
    sum = dot_pairs(sum, pairs, ones);
  }
  const float rescale =
      old == maximum ? 1.0f : _mm512_cvtss_f32(exp_negative(_mm512_set1_ps(old - maximum)));
  weight = weight * rescale + _mm512_reduce_add_ps(sum);
  return rescale;
}

BF16_KERNEL void soften_block(const Scratch& scratch, int64_t count, MlaPartial& partial,
                              int64_t heads) {
  for (int64_t h = 0; h < round_up_to_pair_tiles(heads); ++h)
    scratch.rescale[h] = exponentials(scratch.scores + h * kBlock, count, partial.maximum[h],
                                      partial.weight[h], scratch.p + h * kBlockPairs);
}

// 32 columns of kRows heads' sums.
template <int kRows>
BF16_INLINE void add_values(const uint32_t* p, const float* rescale, const uint32_t* values,
                            int64_t pairs, float* sums, int64_t stride) {
  __m512 sum[kRows][2];
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < 2; ++v)
      sum[i][v] = _mm512_mul_ps(_mm512_loadu_ps(sums + i * stride + v * kPairLanes),
                                _mm512_set1_ps(rescale[i]));
  multiply_pairs<kRows, kBlockPairs, 1>(p, values, kTile, pairs, sum);
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < 2; ++v) _mm512_storeu_ps(sums + i * stride + v * kPairLanes, sum[i][v]);
}

// sum_HC = rescale * sum_HC + p values. A slice of columns for all heads, so that it stays in L1.
BF16_KERNEL void accumulate(const Scratch& scratch, int64_t count, MlaPartial& partial,
                            int64_t heads) {
  const int64_t pairs = (count + 1) / 2, stride = partial.sum_HC.stride;
  for (int64_t c = 0; c < partial.sum_HC.cols; c += kTile) {
    const uint32_t* const values = scratch.values + c * kBlockPairs;
    for (int64_t h = 0, size; h < heads; h += size) {
      size = pair_tile_rows(heads - h);
      const uint32_t* const p = scratch.p + h * kBlockPairs;
      float* const sums = partial.sum_HC.data + h * stride + c;
      if (size == 12) add_values<12>(p, scratch.rescale + h, values, pairs, sums, stride);
      if (size == 8) add_values<8>(p, scratch.rescale + h, values, pairs, sums, stride);
      if (size == 6) add_values<6>(p, scratch.rescale + h, values, pairs, sums, stride);
    }
  }
}

}  // namespace

BF16_KERNEL void pair_queries(const SparseMla& io, uint32_t* packed) {
  Ahead{io, 0, std::min(io.num_keys, kTile)}.fetch(kTile);
  const View2<const float> q = io.q_HD;
  if (q.rows > kFewMlaHeads) {
    pack_pair_rows(q.data, q.rows, q.cols, q.stride, packed);
    return;
  }
  const int64_t width = round_up(q.cols, kWidth);
  for (int64_t h = 0; h < q.rows; ++h) round_row(q[h], q.cols, width, packed + h * width / 2);
}

void attend_paired(const SparseMla& io, const uint32_t* queries, int64_t begin, int64_t end,
                   MlaPartial& partial) {
  const int64_t heads = io.q_HD.rows;
  const Scratch scratch = reserve_scratch(io);
  for (int64_t s = begin; s < end; s += kBlock) {
    const int64_t count = std::min(kBlock, end - s);
    for (int64_t i = 0; i < count; i += kTile) {
      load_keys(io, s + i, std::min(kTile, count - i), scratch, scratch.values + i / 2 * kTile);
      const Ahead ahead{io, s + i + kTile, std::min(io.num_keys, s + i + 2 * kTile)};
      if (heads <= kFewMlaHeads)
        kScoreFew[heads - 1](io, queries, scratch.rows, ahead, scratch.scores + i);
      else
        score_tile(io, queries, scratch.columns, ahead, scratch.scores + i);
    }
    soften_block(scratch, count, partial, heads);
    accumulate(scratch, count, partial, heads);
  }
}

#else

// Never called: can_pair_latents() is false.
void pair_queries(const SparseMla&, uint32_t*) {}
void attend_paired(const SparseMla&, const uint32_t*, int64_t, int64_t, MlaPartial&) {}

#endif

}  // namespace fathom::kernels
