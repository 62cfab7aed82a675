#include "kernels/softmax_row.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/bf16_dot.h"
#include "kernels/simd.h"

namespace fathom::kernels {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

KERNEL float max_of(const float* x, int64_t count) {
  // Four of them, since each waits for its last one.
  F32x8 bests[4];
  for (F32x8& lanes : bests) lanes = broadcast(kMinusInfinity);
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (int64_t v = 0; v < 4; ++v) bests[v] = max(bests[v], load(x + i + v * kLanes));
  for (; i + kLanes <= count; i += kLanes) bests[0] = max(bests[0], load(x + i));
  const F32x8 best = max(max(bests[0], bests[1]), max(bests[2], bests[3]));
  float result = kMinusInfinity;
  for (int64_t lane = 0; lane < kLanes; ++lane) result = std::max(result, best[lane]);
  for (; i < count; ++i) result = std::max(result, x[i]);
  return result;
}

KERNEL bool has_no_infinite_exponent(const float* x, int64_t count) {
  uint32_t found = 0;
  for (int64_t i = 0; i < count; ++i)
    found |= (std::bit_cast<uint32_t>(x[i]) & 0x7f800000u) == 0x7f800000u;
  return found == 0;
}

KERNEL void multiply(float* x, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

// At most kSumBlock values, summed in f32.
constexpr int64_t kSumBlock = 512;

KERNEL float exponentials(const float* x, int64_t count, float maximum, float factor, float* out) {
  F32x8 sum{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const F32x8 e = exp((load(x + i) - maximum) * factor);
    store(out + i, e);
    sum += e;
  }
  if (i < count) {
    store_partial(out + i, exp((load_partial(x + i, count - i) - maximum) * factor), count - i);
    sum += load_partial(out + i, count - i);
  }
  return horizontal_sum(sum);
}

KERNEL float scaled_exponentials(float* x, int64_t count, float scale, float maximum) {
  F32x8 sum{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const F32x8 p = exp(load(x + i) * scale - maximum);
    store(x + i, p);
    sum += p;
  }
  if (i < count) {
    F32x8 p = exp(load_partial(x + i, count - i) * scale - maximum);
    for (int64_t lane = count - i; lane < kLanes; ++lane) p[lane] = 0;
    store_partial(x + i, p, count - i);
    sum += p;
  }
  return horizontal_sum(sum);
}

#if FATHOM_HAS_BF16_KERNELS
// The same bits as with eight lanes: each half of the lanes is added in its turn.
BF16_INLINE __m256 add_halves(__m256 sum, __m512 p) {
  return (sum + _mm512_castps512_ps256(p)) + _mm512_extractf32x8_ps(p, 1);
}

BF16_KERNEL float exponentials_16(const float* x, int64_t count, float maximum, float factor,
                                  float* out) {
  __m256 sum = _mm256_setzero_ps();
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first_lanes(count - i);
    const __m512 distance = _mm512_maskz_loadu_ps(lanes, x + i) - _mm512_set1_ps(maximum);
    const __m512 p = _mm512_maskz_mov_ps(lanes, exp(distance * _mm512_set1_ps(factor)));
    _mm512_mask_storeu_ps(out + i, lanes, p);
    sum = add_halves(sum, p);
  }
  return horizontal_sum(reinterpret_cast<F32x8>(sum));
}

BF16_KERNEL float scaled_exponentials_16(float* x, int64_t count, float scale, float maximum) {
  const __m512 factor = _mm512_set1_ps(scale), shift = _mm512_set1_ps(maximum);
  __m256 sum = _mm256_setzero_ps();
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first_lanes(count - i);
    const __m512 p = _mm512_maskz_mov_ps(
        lanes, exp(_mm512_fmsub_ps(_mm512_maskz_loadu_ps(lanes, x + i), factor, shift)));
    _mm512_mask_storeu_ps(x + i, lanes, p);
    sum = add_halves(sum, p);
  }
  return horizontal_sum(reinterpret_cast<F32x8>(sum));
}
#endif

KERNEL float sum_x_log_x(const float* x, int64_t count) {
  F32x8 sum{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += load(x + i) * log(load(x + i));
  if (i < count) {
    const F32x8 rest = load_partial(x + i, count - i);
    sum += rest * log(rest);
  }
  return horizontal_sum(sum);
}

}  // namespace

float exp_scaled_row(float* x, int64_t count, float scale, float maximum) {
#if FATHOM_HAS_BF16_KERNELS
  if (has_bf16_dot()) return scaled_exponentials_16(x, count, scale, maximum);
#endif
  return scaled_exponentials(x, count, scale, maximum);
}

double exp_row(const float* x, int64_t count, float maximum, float factor, float* out) {
  double sum = 0;
  for (int64_t i = 0; i < count; i += kSumBlock) {
    const int64_t size = std::min(kSumBlock, count - i);
#if FATHOM_HAS_BF16_KERNELS
    if (has_bf16_dot()) {
      sum += exponentials_16(x + i, size, maximum, factor, out + i);
      continue;
    }
#endif
    sum += exponentials(x + i, size, maximum, factor, out + i);
  }
  return sum;
}

bool are_finite(const float* x, int64_t count) { return has_no_infinite_exponent(x, count); }

float max_row(const float* x, int64_t count) { return max_of(x, count); }

float log_sum_exp(float maximum, float scale, float sum) {
  float scaled = maximum * scale;
  asm("" : "+m"(scaled));
  return scaled + std::log(sum);
}

float sum_p_log_p(const float* p, int64_t count) { return sum_x_log_x(p, count); }

void scale_row(float* x, int64_t count, float factor) { multiply(x, count, factor); }

}  // namespace fathom::kernels
