// The head and the cross-entropy of its logits in one, so that logits never exist as a whole.
#pragma once

#include <cstdint>

#include "kernels/matmul.h"

namespace fathom::kernels {

struct LinearCrossEntropy {
  View2<const float> x_MD;
  View2<const float> head_VD;
  const int64_t* target_M = nullptr;  // -1: ignored, loss and gradients 0 where x is finite
  double* loss_M = nullptr;
  // d (sum of the losses) times gradient_scale. No data: not wanted, and then half the work.
  float gradient_scale = 1;
  View2<float> dx_MD = {};
  View2<float> dhead_VD = {};  // with dx_MD or not at all
  Precision precision = Precision::kF32;
};

// loss_M[m] = log(sum_v exp(logits[m, v])) - logits[m, target_M[m]] with logits = x head^T, natural
// logarithms; report of V3, eq. (24). Gradients are written, not added.
//
// Logits are computed by blocks of 256 rows and 256 columns, which stay in a core's second cache,
// once for their sum and once more for their gradients. On AMX that takes a third less time than
// logits kept in memory, in vectors a tenth more (docs/LOG.md). precision: of all products'
// operands, as in gemm, the gradients of logits among them; sums are f32, losses double. CHECKs
// shapes and targets. In parallel over at most sixteen ranges of the vocabulary, the same bits on
// any number of threads. Scratch, kept by the calling thread: dx of up to 1,024 rows for each
// range; with AMX, in bf16, the head twice (once without gradients) and these rows of x twice. A
// thread's: a block. A logit that is not finite makes its row's loss and gradients not finite;
// where it is -inf, the loss takes it as a probability of 0. Oracle: the formula in double, of
// rounded operands and rounded gradients of logits where they are; tolerances 1e-5 of 1 + loss, and
// of the gradients' norms 1e-5 in f32, 3e-4 in bf16.
void linear_cross_entropy(const LinearCrossEntropy& io);

}  // namespace fathom::kernels
