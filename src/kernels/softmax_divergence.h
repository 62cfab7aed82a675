// How far one softmax is from another, with its gradient: MTP's next-token distribution from the
// model's own (model/draft_divergence.h).
#pragma once

#include <cstdint>

namespace fathom::kernels {

struct SoftmaxDivergence {
  double divergence = 0;  // KL(p || q) in nats
  double overlap = 0;     // sum_v min(p_v, q_v)
};

// p = softmax(target_V), q = softmax(logits_V), both of `count` >= 1 finite logits. Afterwards
// logits_V holds q - p, the gradient of the divergence for them, and target_V scratch. Serial,
// allocates nothing. Oracle: the formulas in double; tolerances 1e-5 of 1 + the divergence, 1e-5,
// 1e-6. Equal rows: 0, 1 to 1e-6, zeros.
SoftmaxDivergence softmax_divergence(float* logits_V, float* target_V, int64_t count);

}  // namespace fathom::kernels
