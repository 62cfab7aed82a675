// What the lightning indexer learns from (report of V3.2, section 2.1.1, eq. (3) and (4)): how far
// the softmax of its scores is from what attention does.
//
//   p[t,s] = mean over heads of attention's probabilities: their sum, L1-normalised
//   L[t]   = KL(p[t,:] || softmax(I[t,:])), over all s <= t (warm-up) or the selected s (sparse)
//
// The gradient is taken as dL/dI = softmax(I) - p, which does not vanish where probabilities are
// small. It is computed beside the loss, as nothing else would use what both need.
#pragma once

#include <cstdint>

#include "base/array_view.h"
#include "kernels/attention.h"
#include "kernels/selected_keys.h"

namespace fathom::kernels {

// One sequence of S tokens, of which the last T are queries. The teacher is attention's own
// q_T[H*qk], k_S[H*qk] and lse_HT, which must be of the same keys that keys_T names; the indexer's
// q_TJX (heads one behind another), w_TJ and k_SX are those of kernels/lightning_indexer.
struct IndexerLossInput {
  AttentionShape shape;
  View2<const float> q, k, lse_HT;
  View2<const float> q_TJX, w_TJ, k_SX;
  SelectedKeys keys_T;  // empty: every query sees all keys up to itself
  // Beside keys_T.keys: p, where sparse_attention_forward gave it; null: computed again.
  const float* probabilities = nullptr;
  int64_t recall_k = 0;  // without keys_T: also measures the recall of a top-k of that size
};

// Gradients of sum_t L[t]; overwritten.
struct IndexerLossOutput {
  double loss = 0;    // sum_t L[t], nats
  double recall = 0;  // sum over t of p's mass on the recall_k best keys
  View2<float> dq_TJX, dw_TJ, dk_SX;
};

// CHECKs shapes. Parallel over blocks of queries; bits do not depend on the threads. Scratch:
// blocks of 64 query rows by all keys or, with keys_T, a few megabytes a thread, and eight
// times dk: linear in S. Oracle
// reference::indexer_loss, 1e-5. With selected keys in bf16: kernels/indexer_loss_bf16, or
// kernels/indexer_loss_amx where probabilities are given; 2% of the gradients' norm.
void indexer_loss(const IndexerLossInput& input, IndexerLossOutput& output);

namespace reference {
void indexer_loss(const IndexerLossInput& input, IndexerLossOutput& output);
}

}  // namespace fathom::kernels
