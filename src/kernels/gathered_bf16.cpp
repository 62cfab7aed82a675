#include "kernels/gathered_bf16.h"

#include <algorithm>

#include "base/check.h"
#include "base/parallel.h"
#include "kernels/bf16_octet.h"
#include "kernels/tile.h"

namespace fathom::kernels {

#if FATHOM_HAS_BF16_KERNELS

namespace {

BF16_KERNEL void round_heads(const float* row, int64_t num_heads, int64_t dim, int64_t words,
                             int64_t head_step, uint32_t* out) {
  for (int64_t h = 0; h < num_heads; ++h)
    round_row(row + h * dim, dim, 2 * words, out + h * head_step);
}

// Lane i is the sum of sum[i]'s lanes.
BF16_INLINE __m512 sum_lanes(__m512 (&sum)[16]) {
  __m512 quad[4], half[2];
  for (int i = 0; i < 4; ++i)
    quad[i] = add_lanes({sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]});
  for (int i = 0; i < 2; ++i)
    half[i] = _mm512_shuffle_f32x4(quad[2 * i], quad[2 * i + 1], 0x88) +
              _mm512_shuffle_f32x4(quad[2 * i], quad[2 * i + 1], 0xdd);
  return _mm512_shuffle_f32x4(half[0], half[1], 0x88) +
         _mm512_shuffle_f32x4(half[0], half[1], 0xdd);
}

// kLines: cache lines of a row, where they are one or two; else 0.
template <int kLines>
BF16_KERNEL void dots_of_rows(const uint32_t* x, const uint32_t* rows, int64_t words,
                              const int32_t* keys, int64_t padded, float* dots) {
  if (kLines > 0) words = kLines * kPairLanes;
  for (int64_t i = 0; i < padded; i += kPairLanes) {
    const int64_t ahead = std::min(kPairLanes, padded - kPairLanes - i);
    const uint32_t* row[16];
    __m512 sum[16];
#pragma GCC unroll 16
    for (int lane = 0; lane < 16; ++lane) {
      row[lane] = rows + keys[i + lane] * words;
      sum[lane] = _mm512_setzero_ps();
      const uint32_t* const next = rows + keys[i + ahead + lane] * words;
      for (int64_t word = 0; word < words; word += kPairLanes)
        _mm_prefetch(next + word, _MM_HINT_T0);
    }
#pragma GCC unroll 2
    for (int64_t word = 0; word < words; word += kPairLanes) {
      const __m512i value = _mm512_load_si512(x + word);
#pragma GCC unroll 16
      for (int lane = 0; lane < 16; ++lane)
        sum[lane] = dot_pairs(sum[lane], value, _mm512_load_si512(row[lane] + word));
    }
    _mm512_store_ps(dots + i, sum_lanes(sum));
  }
}

BF16_INLINE void add_lanes_to(__m512 sum, int64_t count, float* out) {
  const __mmask16 lanes = first_lanes(count);
  _mm512_mask_storeu_ps(out, lanes, _mm512_maskz_loadu_ps(lanes, out) + sum);
}

// One cache line of a head: 32 elements of the sum, in order. Two pairs of keys at a time, so that
// their sums hide each other's latency.
BF16_INLINE void add_line(const uint32_t* weights, float factor, const uint32_t* rows,
                          int64_t row_words, const int32_t* keys, int64_t padded, int64_t count,
                          float* out) {
  __m512 low[4], high[4];
  for (int i = 0; i < 4; ++i) low[i] = high[i] = _mm512_setzero_ps();
  for (int64_t i = 0; i < padded; i += 8) {
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair) {
      const __m512i even = _mm512_load_si512(rows + keys[i + 2 * pair] * row_words);
      const __m512i odd = _mm512_load_si512(rows + keys[i + 2 * pair + 1] * row_words);
      const __m512i weight = _mm512_set1_epi32(static_cast<int>(weights[i / 2 + pair]));
      low[pair] = dot_pairs(low[pair], _mm512_unpacklo_epi16(even, odd), weight);
      high[pair] = dot_pairs(high[pair], _mm512_unpackhi_epi16(even, odd), weight);
    }
  }
  const __m512 times = _mm512_set1_ps(factor);
  const __m512 l = ((low[0] + low[1]) + (low[2] + low[3])) * times;
  const __m512 h = ((high[0] + high[1]) + (high[2] + high[3])) * times;
  // Unpacking has put four elements of each eight into `low`, four into `high`.
  const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512i last =
      _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
  add_lanes_to(_mm512_permutex2var_ps(l, first, h), count, out);
  add_lanes_to(_mm512_permutex2var_ps(l, last, h), count - 16, out + 16);
}

BF16_KERNEL void sum_of_rows(const uint32_t* weights, float factor, const uint32_t* rows,
                             int64_t words, int64_t dim, const int32_t* keys, int64_t padded,
                             float* out) {
  for (int64_t x = 0; x < dim; x += kPairTileCols)
    add_line(weights, factor, rows + x / 2, words, keys, padded, dim - x, out + x);
}

BF16_KERNEL float dot_with_rounded(const float* a, const float* b, int64_t count) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first_lanes(count - i);
    const auto rounded =
        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes, b + i)));
    const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16);
    sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(lanes, a + i), _mm512_castsi512_ps(wide), sum);
  }
  return _mm512_reduce_add_ps(sum);
}

// Words, two elements each, of a row of so many: whole cache lines.
int64_t num_row_words(int64_t dim) { return round_up(dim, kPairTileCols) / 2; }

}  // namespace

float dot_of_rounded(const float* a, const float* b, int64_t count) {
  return dot_with_rounded(a, b, count);
}

void HeadRows::assign(View2<const float> rows, View2<const float> more, int64_t num_heads) {
  CHECK_EQ(rows.cols % num_heads, 0);
  CHECK_EQ(more.cols % num_heads, 0);
  CHECK(more.cols == 0 || more.rows == rows.rows, "{} rows and {}", rows.rows, more.rows);
  num_rows_ = rows.rows;
  num_heads_ = num_heads;
  dim_ = rows.cols / num_heads;
  const int64_t more_dim = more.cols / num_heads;
  const int64_t words = num_row_words(dim_), more_words = num_row_words(more_dim);
  words_ = words + more_words;
  data_ = buffer_.reserve<uint32_t>(rows.rows * num_heads_ * words_);
  const int64_t head_step = num_rows_ * words_;
  base::parallel_for(rows.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint32_t* const row = data_ + i * words_;
      round_heads(rows[i], num_heads_, dim_, words, head_step, row);
      if (more_words > 0)
        round_heads(more[i], num_heads_, more_dim, more_words, head_step, row + words);
    }
  });
}

void PaddedKeys::assign(std::span<const int32_t> keys) {
  count_ = std::ssize(keys);
  keys_.resize(round_up(count_, kPairLanes));
  std::copy(keys.begin(), keys.end(), keys_.begin());
  if (count_ > 0) std::fill(keys_.begin() + count_, keys_.end(), keys.back());
}

void gathered_dots(const HeadRows& x, int64_t t, const HeadRows& rows, int64_t h,
                   std::span<const int32_t> keys, float* dots) {
  CHECK_EQ(x.words(), rows.words());
  const auto kernel = rows.words() == kPairLanes       ? dots_of_rows<1>
                      : rows.words() == 2 * kPairLanes ? dots_of_rows<2>
                                                       : dots_of_rows<0>;
  kernel(x.head(h) + t * x.words(), rows.head(h), rows.words(), keys.data(), std::ssize(keys),
         dots);
}

void add_gathered_sum(const uint32_t* weights, float factor, const HeadRows& rows, int64_t h,
                      std::span<const int32_t> keys, float* out) {
  sum_of_rows(weights, factor, rows.head(h), rows.words(), rows.dim(), keys.data(),
              std::ssize(keys), out);
}

#else

float dot_of_rounded(const float*, const float*, int64_t) {
  CHECK(false, "no bf16 kernels here");
  return 0;
}
void HeadRows::assign(View2<const float>, View2<const float>, int64_t) {
  CHECK(false, "no bf16 kernels here");
}
void PaddedKeys::assign(std::span<const int32_t>) { CHECK(false, "no bf16 kernels here"); }
void gathered_dots(const HeadRows&, int64_t, const HeadRows&, int64_t, std::span<const int32_t>,
                   float*) {
  CHECK(false, "no bf16 kernels here");
}
void add_gathered_sum(const uint32_t*, float, const HeadRows&, int64_t, std::span<const int32_t>,
                      float*) {
  CHECK(false, "no bf16 kernels here");
}

#endif

}  // namespace fathom::kernels
