// How far MTP's drafts are from what the model itself predicts, and the gradient that brings them
// nearer. With cross-entropy alone (report of V3, section 2.2) MTP learns from one drawn token;
// here it learns from the whole distribution that the token would be drawn from, the one that
// decides whether a draft is right.
#pragma once

#include "model/ops.h"

namespace fathom::model {

struct DraftDivergence {
  torch::Tensor loss;  // mean over rows of KL(p || q) in nats; differentiable by draft_MD alone
  // Mean over rows of sum_v min(p_v, q_v): what speculative sampling accepts at best, at
  // temperature 1.
  double overlap = 0;
};

// p = softmax(model_MD W^T) and q = softmax(draft_MD W^T), both through the model's head W, whose
// weights are f32 and stay as they are. f32, row-major; no rows: both figures are 0. Logits are
// kept for 256 rows only. Products in f32 or, where the options say so, of operands rounded to
// bf16, q - p among them, which is dL/dz_q times the number of rows. Parallel, the same bits on any
// number of threads. Oracle: the formulas in double, tolerance 1e-5 in f32; gradient: central
// differences (model/draft_divergence_test.cpp).
DraftDivergence draft_divergence(const torch::Tensor& draft_MD, const torch::Tensor& model_MD,
                                 const Linear& head_VD, const ops::LinearOptions& options);

}  // namespace fathom::model
