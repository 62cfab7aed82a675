// The seam between kernels and LibTorch: each op checks its tensors once, hands plain views to a
// kernel, and carries its gradient. Tensors are contiguous f32 unless said otherwise. No double
// backward. Tests: model/ops_test.cpp, central differences in double precision.
#pragma once

#include <initializer_list>
#include <span>
#include <vector>

#include "kernels/matmul.h"
#include "kernels/pointwise.h"
#include "model/tensor.h"
#include "model/weights.h"

namespace fathom::model::ops {

View2<float> view2(const torch::Tensor& x);  // the last dimension against all others
kernels::WeightView weight_view(const Linear& linear);

struct LinearOptions {
  bool bf16_matmuls = false;    // round both operands (in backward too) to bf16
  bool quantise_input = false;  // pass x through FP8 if the weight is FP8 (deploy)
};
inline kernels::Precision precision_of(bool bf16_matmuls) {
  return bf16_matmuls ? kernels::Precision::kBF16 : kernels::Precision::kF32;
}

// y_MN = x_MK W^T. Gradients for x and an f32 W.
torch::Tensor linear(const torch::Tensor& x_MK, const Linear& w_NK, const LinearOptions& options);

// Whether the products of such weights may go together below: where no gradients are recorded.
// (f32 weights whose products are rounded to bf16 are training's, and go through gemm.)
bool goes_together(const Linear& w_NK, const LinearOptions& options);

// The same of one x and several W, which the threads share out together where they may.
std::vector<torch::Tensor> linear_group(const torch::Tensor& x_MK,
                                        std::initializer_list<const Linear*> weights,
                                        const LinearOptions& options);

// An MLP and the rows that go through it: y = down(silu(gate x) * up x).
struct MlpRows {
  const MlpWeights* weights;
  View2<const float> x_MD;
  View2<float> y_MD;
};
// All of them, each of the three products over all MLPs together. Weights that go together, all of
// one format; in deploy mode x has gone through FP8 already (through_fp8).
void mlp_group(std::span<const MlpRows> mlps, const LinearOptions& options);
// x as linear takes it: contiguous, through FP8 where the options and W ask for it.
torch::Tensor through_fp8(const torch::Tensor& x_MK, const Linear& w_NK,
                          const LinearOptions& options);

torch::Tensor rms_norm(const torch::Tensor& x_MD, const torch::Tensor& weight_D, double eps);
torch::Tensor swiglu(const torch::Tensor& gate_MF, const torch::Tensor& up_MF);
torch::Tensor sigmoid(const torch::Tensor& x_ME);
torch::Tensor softmax(const torch::Tensor& x_ME);  // of each row
// Turns x in place where no gradient is recorded and nobody else holds it: a moved value, which
// must own its memory.
torch::Tensor rope(torch::Tensor x_MHD, const torch::Tensor& cos_MR2, const torch::Tensor& sin_MR2,
                   const kernels::Rope& options);

// Where the tokens of each expert lie when all (token, expert) pairs are sorted by expert.
struct ExpertPlan {
  std::vector<int64_t> counts_E;  // pairs per expert
  torch::Tensor token_of_slot_M;  // i64: slot -> token
  torch::Tensor slot_of_pair_NK;  // i64: (token, its j-th expert, ascending) -> slot
};
// expert_index_NK: i64, each row ascending.
ExpertPlan plan_experts(const torch::Tensor& expert_index_NK, int64_t num_experts);
torch::Tensor gather_to_experts(const torch::Tensor& x_ND, const ExpertPlan& plan);
// out[n] = sum_j weight[n,j] * y[slot(n,j)]; gradients for y and the weights.
torch::Tensor combine_from_experts(const torch::Tensor& y_MD, const torch::Tensor& weight_NK,
                                   const ExpertPlan& plan);

// weight[n,j] = factor * scores[n, index[n,j]], divided by their sum over j if asked. A row's
// indices are distinct. Gradient for the scores.
torch::Tensor expert_weights(const torch::Tensor& scores_NE, const torch::Tensor& index_NK,
                             bool normalises, double factor);

// Mean cross-entropy (nats) of x W^T against targets_M (i64, -1 ignored); both gradients are
// computed on the way (kernels/linear_cross_entropy.h).
torch::Tensor linear_cross_entropy(const torch::Tensor& x_MD, const Linear& head_VD,
                                   const torch::Tensor& targets_M, const LinearOptions& options);

}  // namespace fathom::model::ops
