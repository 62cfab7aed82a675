#include "kernels/optimizer.h"

#include <algorithm>

#include "kernels/simd.h"

namespace fathom::kernels {
KERNEL void adamw(const AdamW& o, int64_t count, const float* gradient, float* weight, float* m,
                  float* v) {
  for (int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * o.gradient_scale;
    m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
    v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
    const float update = m[i] / o.correction1 / (__builtin_sqrtf(v[i] / o.correction2) + o.epsilon);
    weight[i] -= o.learning_rate * (update + o.weight_decay * weight[i]);
  }
}

KERNEL double sum_of_squares(int64_t count, const float* x) {
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += 4096) {
    const int64_t end = std::min<int64_t>(begin + 4096, count);
    F32x8 sum{};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) sum += load(x + i) * load(x + i);
    for (; i < end; ++i) total += static_cast<double>(x[i]) * x[i];
    total += horizontal_sum(sum);
  }
  return total;
}

KERNEL bool all_finite(int64_t count, const float* x) {
  F32x8 sum{};  // of x - x: 0, or not a number
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += load(x + i) - load(x + i);
  float total = horizontal_sum(sum);
  for (; i < count; ++i) total += x[i] - x[i];
  return total == 0;
}

}  // namespace fathom::kernels
