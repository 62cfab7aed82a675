#include "kernels/softmax_row.h"

#include <algorithm>
#include <limits>

#include "kernels/bf16_dot.h"
#include "kernels/simd.h"

namespace fathom::kernels {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

KERNEL float max_of(const float* x, int64_t count) {
  F32x8 best = broadcast(kMinusInfinity);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) best = max(best, load(x + i));
  float result = kMinusInfinity;
  for (int64_t lane = 0; lane < kLanes; ++lane) result = std::max(result, best[lane]);
  for (; i < count; ++i) result = std::max(result, x[i]);
  return result;
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
// The same bits: each half of the lanes is added in its turn.
BF16_KERNEL float scaled_exponentials_16(float* x, int64_t count, float scale, float maximum) {
  const __m512 factor = _mm512_set1_ps(scale), shift = _mm512_set1_ps(maximum);
  __m256 sum = _mm256_setzero_ps();
  for (int64_t i = 0; i < count; i += 16) {
    const auto lanes = static_cast<__mmask16>(count - i >= 16 ? 0xffff : (1 << (count - i)) - 1);
    const __m512 p = _mm512_maskz_mov_ps(
        lanes, exp(_mm512_fmsub_ps(_mm512_maskz_loadu_ps(lanes, x + i), factor, shift)));
    _mm512_mask_storeu_ps(x + i, lanes, p);
    sum = (sum + _mm512_castps512_ps256(p)) + _mm512_extractf32x8_ps(p, 1);
  }
  return horizontal_sum(reinterpret_cast<F32x8>(sum));
}
#endif

}  // namespace

float exp_scaled_row(float* x, int64_t count, float scale, float maximum) {
#if FATHOM_HAS_BF16_KERNELS
  if (has_bf16_dot()) return scaled_exponentials_16(x, count, scale, maximum);
#endif
  return scaled_exponentials(x, count, scale, maximum);
}

double exp_row(const float* x, int64_t count, float maximum, float factor, float* out) {
  double sum = 0;
  for (int64_t i = 0; i < count; i += kSumBlock)
    sum += exponentials(x + i, std::min(kSumBlock, count - i), maximum, factor, out + i);
  return sum;
}

float max_row(const float* x, int64_t count) { return max_of(x, count); }

void scale_row(float* x, int64_t count, float factor) { multiply(x, count, factor); }

}  // namespace fathom::kernels
