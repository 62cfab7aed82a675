#include "kernels/softmax_row.h"

#include <algorithm>
#include <limits>

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

}  // namespace

double exp_row(const float* x, int64_t count, float maximum, float factor, float* out) {
  double sum = 0;
  for (int64_t i = 0; i < count; i += kSumBlock)
    sum += exponentials(x + i, std::min(kSumBlock, count - i), maximum, factor, out + i);
  return sum;
}

float max_row(const float* x, int64_t count) { return max_of(x, count); }

void scale_row(float* x, int64_t count, float factor) { multiply(x, count, factor); }

}  // namespace fathom::kernels
