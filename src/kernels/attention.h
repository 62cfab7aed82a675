// Causal attention with keys and values expanded per head (MLA's MHA form, report appendix A),
// computed by tiles with a running softmax; scores are never stored whole.
#pragma once

#include <cstdint>

#include "base/array_view.h"
#include "kernels/bf16_dot.h"
#include "kernels/matmul.h"

namespace fathom::kernels {

// Which keys a query may see besides causality: row t of `allowed` holds S bytes, 0 = masked. Null
// allows all (dense).
struct AttentionMask {
  const uint8_t* allowed = nullptr;
  int64_t stride = 0;
};

struct AttentionShape {
  int64_t num_heads = 0;
  int64_t qk_dim = 0;
  int64_t v_dim = 0;
  float scale = 1;                        // of q.k, before the softmax
  Precision precision = Precision::kF32;  // of the products; softmax and its sums are f32
};

// Whether this processor's bf16 dot products take the shape's products.
inline bool takes_bf16_dot(const AttentionShape& shape) {
  return shape.precision == Precision::kBF16 && has_bf16_dot();
}

// Columns of head h in rows that hold every head's `dim` elements one behind another.
template <typename T>
View2<T> head_columns(View2<T> x, int64_t h, int64_t dim) {
  return View2<T>(x.data + h * dim, x.rows, dim, x.stride);
}

// One sequence. q_T[H*qk], k_S[H*qk], v_S[H*v], out_T[H*v]; query t stands at position S-T+t and
// sees keys up to it. lse_HT: log-sum-exp of the scaled, masked scores, natural log. A query that
// sees no key gets zeros and lse -inf. Serial over the sequence's heads [head_begin, head_end):
// callers run sequences and heads in parallel. A query's bits depend on its own keys only, not on
// T. Oracle reference::attention, 2e-5.
struct AttentionForward {
  View2<const float> q, k, v;
  View2<float> out, lse_HT;
  AttentionMask mask;
};
void attention_forward(const AttentionShape& shape, const AttentionForward& io, int64_t head_begin,
                       int64_t head_end);

// Gradients, recomputing the tiles from lse. dq, dk, dv are overwritten for the given heads.
struct AttentionBackward {
  View2<const float> q, k, v, out, dout, lse_HT;
  View2<float> dq, dk, dv;
  AttentionMask mask = {};
};
void attention_backward(const AttentionShape& shape, const AttentionBackward& io,
                        int64_t head_begin, int64_t head_end);

namespace reference {
void attention(const AttentionShape& shape, const AttentionForward& io);
}  // namespace reference

}  // namespace fathom::kernels
