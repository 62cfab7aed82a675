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

}  // namespace

float max_row(const float* x, int64_t count) { return max_of(x, count); }

void scale_row(float* x, int64_t count, float factor) { multiply(x, count, factor); }

}  // namespace fathom::kernels
