// What the running softmaxes of dense and of sparse attention share.
#pragma once

#include <cstdint>

namespace fathom::kernels {

// -inf if there are none.
float max_row(const float* x, int64_t count);
void scale_row(float* x, int64_t count, float factor);

}  // namespace fathom::kernels
