// DeepSeekMoE: sigmoid gating with bias-steered selection (report of V3, section 2.1.2), or softmax
// gating whose choice is limited to the best groups or not limited (report of V2, section 2.2.2).
#pragma once

#include "model/transformer.h"

namespace fathom::model {

struct Routing {
  torch::Tensor expert_index_NK;   // i64, ascending in each row
  torch::Tensor expert_weight_NK;  // f32; differentiable
  torch::Tensor counts_E;          // i64
  torch::Tensor balance;           // see ForwardStatistics; only where gradients are recorded
};

// Scores are sigmoid(gate x) or, with scoring_func softmax, softmax(gate x) over all experts, in
// f32. Selection, by topk_method: noaux_tc adds the correction bias, keeps the topk_group groups
// with the greatest sum of their two best biased scores, and of their experts the
// num_experts_per_tok best; group_limited_greedy has no bias and goes by each group's best score;
// greedy takes the best of all. Ties to the lower index. Weights are the unbiased scores,
// normalised if norm_topk_prob, multiplied by routed_scaling_factor either way. The balance
// statistic takes the load from all ranks of options.distribution->batch.
Routing route(const MoeWeights& weights, const Config& config, const torch::Tensor& x_ND,
              const ForwardOptions& options);

// The balance statistic of one set of tokens, eq. (17) to (20) without alpha: sum_e f_e P_e with
// f_e = E / (K T) * (tokens routed to e) and P_e the mean over tokens of score_e / sum of scores.
// Differentiable by the scores.
torch::Tensor balance_of(const torch::Tensor& scores_TE, const torch::Tensor& expert_index_TK);

// down(silu(gate x) * up x).
torch::Tensor mlp(const MlpWeights& weights, const torch::Tensor& x_ND,
                  const ForwardOptions& options);

// Shared expert plus the weighted routed ones, each expert over all of its tokens at once.
torch::Tensor moe(const MoeWeights& weights, const torch::Tensor& x_ND, const Routing& routing,
                  const ForwardOptions& options);

}  // namespace fathom::model
