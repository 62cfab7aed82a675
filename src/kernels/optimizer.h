// Element-wise optimizer updates over flat f32 arrays. Serial; callers run them in parallel over
// tensors or ranges. Reference: the formula, in optimizer's test.
#pragma once

#include <cstdint>

namespace fathom::kernels {

// AdamW (Loshchilov and Hutter 2019) with decoupled decay and bias correction:
//   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   w -= learning_rate * (m / correction1 / (sqrt(v / correction2) + epsilon) + weight_decay * w)
struct AdamW {
  float learning_rate = 0;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float epsilon = 1e-8f;
  float weight_decay = 0;
  float correction1 = 1;  // 1 - beta1^t
  float correction2 = 1;
  float gradient_scale = 1;  // clipping: g is multiplied by it first
};
void adamw(const AdamW& options, int64_t count, const float* gradient, float* weight, float* m,
           float* v);

double sum_of_squares(int64_t count, const float* x);

bool all_finite(int64_t count, const float* x);

}  // namespace fathom::kernels
