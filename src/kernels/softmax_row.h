// What the softmaxes of dense attention, of sparse attention and of sampling share.
#pragma once

#include <cstdint>

namespace fathom::kernels {

bool are_finite(const float* x, int64_t count);
// -inf if there are none.
float max_row(const float* x, int64_t count);
void scale_row(float* x, int64_t count, float factor);
// out[i] = exp((x[i] - maximum) * factor), to 2 ulp of the exponential; returns their sum, which is
// taken in one fixed order. Minus infinity gives 0.
double exp_row(const float* x, int64_t count, float maximum, float factor, float* out);

// maximum * scale + log(sum): the log-sum-exp of scaled scores, of which the exponentials' sum is
// of distances to the maximum. The product is rounded before it is added.
float log_sum_exp(float maximum, float scale, float sum);

// Of p[i] log p[i]; zeros add nothing. In f32 and one fixed order.
float sum_p_log_p(const float* p, int64_t count);

// x[i] = exp(x[i] * scale - maximum), as above; returns the sum, in f32 and one fixed order.
float exp_scaled_row(float* x, int64_t count, float scale, float maximum);

}  // namespace fathom::kernels
