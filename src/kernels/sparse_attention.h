// Attention over each query's selected keys with keys and values expanded per head (the MHA form),
// as the sparse stage trains it: report of V3.2, eq. (2). What serves is sparse_mla (the MQA form).
#pragma once

#include <cstdint>

#include "base/array_view.h"
#include "kernels/attention.h"
#include "kernels/selected_keys.h"

namespace fathom::kernels {

// One sequence. q_T[H*qk], k_S[H*qk], v_S[H*v], out_T[H*v]; lse_HT: log-sum-exp of the scaled
// scores of the selected keys, natural log. A query without keys gets zeros and lse -inf. Nothing
// else is masked: a selection never holds later keys.
//
// In bf16, on a processor with AMX, 32 queries share products with all that any of them selects
// (kernels/sparse_attention_amx); on one with bf16 dot products alone each works on its own keys
// (kernels/sparse_attention_bf16): both say how exact that is. Elsewhere, and in f32, each query
// works on its own keys in f32, one head at a time for 64 queries, whose sums by keys go on in
// registers (kernels/queries_of_keys); in bf16 its operands are rounded first. Forward parallel
// over blocks of 64 queries, backward over heads. Oracle reference::attention with the selection as
// its mask, 2e-5, and within 1% of the norm when rounded. Scratch: a copy of all operands, and
// weights of 64 queries, two f32 for each place of the longest list rounded up to a power of two, a
// thread. Work and memory grow with what is selected, not with S^2; bits do not depend on the
// threads.
struct SparseAttentionForward {
  View2<const float> q, k, v;
  View2<float> out, lse_HT;
  SelectedKeys keys_T;
  // Where set, beside keys_T.keys: the mean over heads of each key's probability, what the indexer
  // learns from.
  float* mean_probabilities = nullptr;
};
void sparse_attention_forward(const AttentionShape& shape, const SparseAttentionForward& io);

// Gradients, recomputing the scores. dq, dk, dv are overwritten. No gradient passes through the
// selection.
struct SparseAttentionBackward {
  View2<const float> q, k, v, out, dout, lse_HT;
  View2<float> dq, dk, dv;
  SelectedKeys keys_T;
};
void sparse_attention_backward(const AttentionShape& shape, const SparseAttentionBackward& io);

}  // namespace fathom::kernels
