#include <algorithm>

#include "kernels/amx_tile.h"
#include "kernels/bf16_tile.h"
#include "kernels/latent_bf16.h"
#include "kernels/sparse_mla_block.h"
#include "kernels/tile.h"

namespace fathom::kernels {
namespace {

int64_t num_k_tiles(const SparseMla& io) { return ceil_div(io.q_HD.cols, kAmxK); }

}  // namespace

bool can_tile_latents(const SparseMla& io) {
  return has_amx() && io.latent_SD.layout.format != RowFormat::kF32;
}

int64_t tiled_queries_size(const SparseMla& io) {
  return ceil_div(io.q_HD.rows, kAmxCols) * num_k_tiles(io) * kTileWords;
}

#if FATHOM_HAS_AMX_KERNELS

namespace {

// Keys whose scores are held at once, for all heads. At V3.2's shape: rows 144 KiB, values 128,
// queries 144, scores 64, exponentials 32, sums 272, so that all of it stays in an L2 cache of 1
// MiB.
constexpr int64_t kBlock = 128;
constexpr int64_t kBlockTiles = kBlock / kAmxK;  // of keys, as the values' k
constexpr int64_t kGroup = 2 * kAmxRows;         // keys whose scores are computed at once

// H and C rounded up to whole tiles.
struct Scratch {
  uint16_t* rows;     // [128][D, padded to 32], bf16
  uint32_t* values;   // [C / 16][4][16 pairs of keys][16 columns]
  float* scores;      // [128][H]
  uint32_t* weights;  // [H / 16][4][16 heads][16 pairs of keys]
  float* rescale;     // [H]
};

Scratch reserve_scratch(const SparseMla& io) {
  static thread_local LineBuffer rows, values, scores, weights, rescale;
  const int64_t heads = round_up(io.q_HD.rows, kAmxCols), tiles = heads / kAmxCols;
  return {rows.reserve<uint16_t>(kBlock * num_k_tiles(io) * kAmxK),
          values.reserve<uint32_t>(ceil_div(io.out_HC.cols, kPairTileCols) * 2 * kBlockTiles *
                                   kTileWords),
          scores.reserve<float>(kBlock * heads),
          weights.reserve<uint32_t>(tiles * kBlockTiles * kTileWords),
          rescale.reserve<float>(heads)};
}

// Keys [first, first + count) of the list as rows and as values; up to a whole tile of 32 the
// missing ones are zero.
AMX_KERNEL void load_keys(const SparseMla& io, int64_t first, int64_t count, uint16_t* rows,
                          uint32_t* values) {
  const int64_t width = num_k_tiles(io) * kAmxK;
  for (int64_t i = 0; i < count; ++i)
    widen_to_bf16(io.latent_SD.layout, row_of(io, first + i), width, rows + i * width);
  std::fill(rows + count * width, rows + kGroup * width, uint16_t{0});
  const __m512i low = low_pairs_of_rows(), high = high_pairs_of_rows();
  for (int64_t c = 0; c < io.out_HC.cols; c += kPairTileCols) {
    uint32_t* const out = values + c / kAmxCols * kBlockTiles * kTileWords;
    for (int64_t pair = 0; pair < kAmxPairs; ++pair) {
      const __m512i even = _mm512_loadu_si512(rows + 2 * pair * width + c);
      const __m512i odd = _mm512_loadu_si512(rows + (2 * pair + 1) * width + c);
      _mm512_store_si512(out + pair * kAmxCols, _mm512_permutex2var_epi16(even, low, odd));
      _mm512_store_si512(out + kBlockTiles * kTileWords + pair * kAmxCols,
                         _mm512_permutex2var_epi16(even, high, odd));
    }
  }
}

// scores[key][head] of 32 keys, not yet scaled. Fetches the next keys' rows a few at a time.
void score_group(const SparseMla& io, const uint32_t* queries, const uint16_t* rows, Ahead ahead,
                 float* scores) {
  const int64_t num_k = num_k_tiles(io), tiles = ceil_div(io.q_HD.rows, kAmxCols);
  const int64_t row_bytes = num_k * kAmxK * static_cast<int64_t>(sizeof *rows);
  const int64_t score_bytes = tiles * kAmxCols * static_cast<int64_t>(sizeof *scores);
  for (int64_t h = 0; h < tiles; h += 2) {
    const bool has_second = h + 1 < tiles;
    const uint32_t* const q = queries + h * num_k * kTileWords;
    ahead.fetch(ceil_div(2 * kGroup, tiles));
    clear_sums();
    multiply_two_by_two({rows, rows + kAmxRows * num_k * kAmxK, row_bytes, 64},
                        {q, q + (has_second ? num_k * kTileWords : 0), 64, kTileBytes}, num_k);
    SumTiles{scores + h * kAmxCols, score_bytes, true, has_second}.store();
  }
}

AMX_INLINE __m512 weight_of(const float* scores, __m512 maximum) {
  return exp_negative(_mm512_sub_ps(_mm512_loadu_ps(scores), maximum));
}

// Sixteen heads, one in a lane: their scores of `count` keys become weights exp(score - maximum),
// rounded, by pairs of keys. Returns what the sums so far must be multiplied by. A head's weight
// sums what was rounded, so that the weights of values add up to one.
AMX_INLINE __m512 soften_heads(float* scores, int64_t stride, int64_t count, float scale,
                               float* maximum, float* weight, uint32_t* out) {
  const __m512 factor = _mm512_set1_ps(scale), old = _mm512_loadu_ps(maximum);
  __m512 most = old;
  // Scaled scores go back to memory: fused with the subtraction below, the product would not be
  // rounded as its maximum is.
  for (int64_t i = 0; i < count; ++i) {
    const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + i * stride), factor);
    _mm512_storeu_ps(scores + i * stride, score);
    most = _mm512_max_ps(score, most);
  }
  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t tile = 0; tile * kAmxK < count; ++tile) {
    __m512i pairs[kAmxPairs];
    for (int64_t p = 0; p < kAmxPairs; ++p) {
      const int64_t i = tile * kAmxK + 2 * p;
      const __m512 even = i < count ? weight_of(scores + i * stride, most) : _mm512_setzero_ps();
      const __m512 odd =
          i + 1 < count ? weight_of(scores + (i + 1) * stride, most) : _mm512_setzero_ps();
      pairs[p] = round_to_pairs_of_rows(even, odd);
      sum = dot_pairs(sum, pairs[p], ones);
    }
    transpose_lanes(pairs);
    for (int64_t h = 0; h < kAmxRows; ++h)
      _mm512_store_si512(out + tile * kTileWords + h * kAmxPairs, pairs[h]);
  }
  const __m512 rescale =
      _mm512_mask_blend_ps(_mm512_cmp_ps_mask(old, most, _CMP_EQ_OQ),
                           exp_negative(_mm512_sub_ps(old, most)), _mm512_set1_ps(1.0f));
  _mm512_storeu_ps(maximum, most);
  _mm512_storeu_ps(weight, _mm512_fmadd_ps(_mm512_loadu_ps(weight), rescale, sum));
  return rescale;
}

AMX_KERNEL void soften_block(const SparseMla& io, const Scratch& scratch, int64_t count,
                             MlaPartial& partial) {
  const int64_t heads = round_up(io.q_HD.rows, kAmxCols), cols = round_up(io.out_HC.cols, 16);
  for (int64_t h = 0; h < heads; h += kAmxCols) {
    const __m512 rescale =
        soften_heads(scratch.scores + h, heads, count, io.scale, partial.maximum + h,
                     partial.weight + h, scratch.weights + h / kAmxCols * kBlockTiles * kTileWords);
    _mm512_storeu_ps(scratch.rescale + h, rescale);
    for (int64_t i = h; i < h + kAmxCols; ++i) {
      if (scratch.rescale[i] == 1.0f) continue;
      float* const sums = partial.sum_HC.data + i * partial.sum_HC.stride;
      const __m512 factor = _mm512_set1_ps(scratch.rescale[i]);
      for (int64_t c = 0; c < cols; c += 16)
        _mm512_storeu_ps(sums + c, _mm512_mul_ps(_mm512_loadu_ps(sums + c), factor));
    }
  }
}

// sum_HC += weights values. 32 columns for all heads, so that the values stay in L1.
void accumulate(const SparseMla& io, const Scratch& scratch, int64_t count, MlaPartial& partial) {
  const int64_t tiles = ceil_div(io.q_HD.rows, kAmxCols), num_k = ceil_div(count, kAmxK);
  const int64_t stride = partial.sum_HC.stride;
  const int64_t sum_bytes = stride * static_cast<int64_t>(sizeof(float));
  constexpr int64_t kTiles = kBlockTiles * kTileWords;
  for (int64_t c = 0; c < io.out_HC.cols; c += kPairTileCols) {
    const uint32_t* const values = scratch.values + c / kAmxCols * kTiles;
    for (int64_t h = 0; h < tiles; h += 2) {
      const bool has_second = h + 1 < tiles;
      const uint32_t* const weights = scratch.weights + h * kTiles;
      const SumTiles sums{partial.sum_HC.data + h * kAmxRows * stride + c, sum_bytes, has_second};
      sums.load();
      multiply_two_by_two({weights, weights + (has_second ? kTiles : 0), 64, kTileBytes},
                          {values, values + kTiles, 64, kTileBytes}, num_k);
      sums.store();
    }
  }
}

}  // namespace

// [heads / 16][D / 32][16 pairs][16 heads]; missing heads and numbers are zero.
AMX_KERNEL void tile_queries(const SparseMla& io, uint32_t* packed) {
  Ahead{io, 0, std::min(io.num_keys, kGroup)}.fetch(kGroup);
  const View2<const float> q = io.q_HD;
  for (int64_t h = 0; h < q.rows; h += kAmxCols)
    for (int64_t k = 0; k < num_k_tiles(io); ++k, packed += kTileWords) {
      const int64_t left = q.cols - k * kAmxK;
      __m512i pairs[kAmxCols];
      for (int64_t i = 0; i < kAmxCols; ++i) {
        const int64_t count = h + i < q.rows ? left : 0;
        const float* const from = q[std::min(h + i, q.rows - 1)] + k * kAmxK;
        pairs[i] = round_to_pairs(_mm512_maskz_loadu_ps(first_lanes(count), from),
                                  _mm512_maskz_loadu_ps(first_lanes(count - 16), from + 16));
      }
      transpose_lanes(pairs);
      for (int64_t p = 0; p < kAmxPairs; ++p) _mm512_store_si512(packed + p * kAmxCols, pairs[p]);
    }
}

void attend_tiled(const SparseMla& io, const uint32_t* queries, int64_t begin, int64_t end,
                  MlaPartial& partial) {
  const TileShape shape(kAmxCols);
  const Scratch scratch = reserve_scratch(io);
  const int64_t heads = round_up(io.q_HD.rows, kAmxCols), width = num_k_tiles(io) * kAmxK;
  for (int64_t s = begin; s < end; s += kBlock) {
    const int64_t count = std::min(kBlock, end - s);
    for (int64_t i = 0; i < count; i += kGroup) {
      uint16_t* const rows = scratch.rows + i * width;
      load_keys(io, s + i, std::min(kGroup, count - i), rows,
                scratch.values + i / kAmxK * kTileWords);
      const Ahead ahead{io, s + i + kGroup, std::min(io.num_keys, s + i + 2 * kGroup)};
      score_group(io, queries, rows, ahead, scratch.scores + i * heads);
    }
    soften_block(io, scratch, count, partial);
    accumulate(io, scratch, count, partial);
  }
}

#else

// Never called: can_tile_latents() is false.
void tile_queries(const SparseMla&, uint32_t*) {}
void attend_tiled(const SparseMla&, const uint32_t*, int64_t, int64_t, MlaPartial&) {}

#endif

}  // namespace fathom::kernels
