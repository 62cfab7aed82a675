// Fused row-wise operations and their gradients. Each works row by row: a row's bits depend on that
// row alone. Parallel over rows; none allocates. Oracles: double-precision references in
// model/ops_test.cpp, relative tolerance 1e-5 forward, 1e-4 gradients.
#pragma once

#include <cstdint>

#include "base/array_view.h"

namespace fathom::kernels {

// y = x / sqrt(mean(x^2) + eps) * weight. inverse_rms_M (may be null) keeps 1/sqrt(..) for
// backward.
void rms_norm(View2<const float> x_MD, const float* weight_D, float eps, View2<float> y_MD,
              float* inverse_rms_M);
// dx and dweight_D (overwritten). dweight is summed over rows in a fixed order.
void rms_norm_backward(View2<const float> x_MD, const float* weight_D, const float* inverse_rms_M,
                       View2<const float> dy_MD, View2<float> dx_MD, float* dweight_D);

// SwiGLU's product: y = silu(gate) * up. y may be gate.
void swiglu(View2<const float> gate_MF, View2<const float> up_MF, View2<float> y_MF);
void swiglu_backward(View2<const float> gate_MF, View2<const float> up_MF, View2<const float> dy_MF,
                     View2<float> dgate_MF, View2<float> dup_MF);

// y = 1 / (1 + exp(-x)). LibTorch's own rounds differently at the end of an array than inside, so
// that a token's routing weights would depend on its place in the batch.
void sigmoid(View2<const float> x_ME, View2<float> y_ME);

// y = exp(x) / (sum of exp(x) over the row), of distances to the row's maximum. y may be x.
void softmax(View2<const float> x_ME, View2<float> y_ME);

// Rotary embedding, in place, of `num_heads` heads of `head_dim` elements a row, of which the
// `rope_dim` from `rope_begin` turn. cos_MR2, sin_MR2: one row a token, rope_dim / 2 angles.
// interleaved pairs (2i, 2i+1) as MLA does; otherwise halves (i, i + rope_dim/2) as the indexer
// does. `inverse` turns back, which is also the gradient.
struct Rope {
  int64_t num_heads = 1;
  int64_t head_dim = 0;
  int64_t rope_begin = 0;
  int64_t rope_dim = 0;
  bool interleaved = true;
  bool inverse = false;
};
void rope(const Rope& options, View2<const float> cos_MR2, View2<const float> sin_MR2,
          View2<float> x_MHD);

// out[m] = x[index_M[m]].
void gather_rows(View2<const float> x_ND, const int64_t* index_M, View2<float> out_MD);
// out[n] = sum_j weight[n,j] * x[slot_NK[n,j]], j ascending. weight may be empty: all ones.
void combine_rows(View2<const float> x_MD, const int64_t* slot_NK, int64_t num_slots,
                  const float* weight_NK, View2<float> out_ND);

}  // namespace fathom::kernels
