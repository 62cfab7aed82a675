#include "model/moe.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "model/distribution.h"
#include "model/ops.h"

namespace fathom::model {
namespace {

using torch::Tensor;

// Chooses one token's experts by biased scores; writes them in ascending order.
class ExpertChooser {
 public:
  explicit ExpertChooser(const Config& config)
      : c_(config), group_size_(config.n_routed_experts / config.n_group) {}

  void choose(const float* biased, int64_t* chosen) {
    order_.clear();
    for (int64_t group : best_groups(biased))
      for (int64_t e = group * group_size_; e < (group + 1) * group_size_; ++e) order_.push_back(e);
    keep_best(order_, c_.num_experts_per_tok, [&](int64_t e) { return biased[e]; });
    std::sort(order_.begin(), order_.end());
    std::copy(order_.begin(), order_.end(), chosen);
  }

 private:
  template <typename Score>
  static void keep_best(std::vector<int64_t>& items, int64_t count, const Score& score) {
    std::partial_sort(items.begin(), items.begin() + count, items.end(), [&](int64_t a, int64_t b) {
      return score(a) != score(b) ? score(a) > score(b) : a < b;
    });
    items.resize(count);
  }

  const std::vector<int64_t>& best_groups(const float* biased) {
    groups_.resize(c_.n_group);
    for (int64_t g = 0; g < c_.n_group; ++g) groups_[g] = g;
    if (c_.topk_group == c_.n_group) return groups_;
    const auto group_score = [&](int64_t g) {
      float best = -std::numeric_limits<float>::infinity(), second = best;
      for (int64_t e = g * group_size_; e < (g + 1) * group_size_; ++e) {
        second = std::max(second, std::min(best, biased[e]));
        best = std::max(best, biased[e]);
      }
      return best + second;
    };
    keep_best(groups_, c_.topk_group, group_score);
    return groups_;
  }

  const Config& c_;
  int64_t group_size_;
  std::vector<int64_t> order_, groups_;
};

}  // namespace

Routing route(const MoeWeights& weights, const Config& config, const Tensor& x_ND,
              const ForwardOptions& options) {
  // The router stays in f32 whatever the other matmuls do.
  const Tensor scores = ops::sigmoid(ops::linear(x_ND, weights.gate, {}));
  const Tensor biased = (scores.detach() + weights.e_score_correction_bias).contiguous();
  Routing routing;
  routing.expert_index_NK = torch::empty({x_ND.size(0), config.num_experts_per_tok}, torch::kLong);
  ExpertChooser chooser(config);
  for (int64_t n = 0; n < x_ND.size(0); ++n)
    chooser.choose(biased.data_ptr<float>() + n * config.n_routed_experts,
                   routing.expert_index_NK.data_ptr<int64_t>() + n * config.num_experts_per_tok);
  Tensor chosen = scores.gather(1, routing.expert_index_NK);
  if (config.norm_topk_prob) chosen = chosen / chosen.sum(1, true);
  routing.expert_weight_NK = chosen * config.routed_scaling_factor;
  routing.counts_E =
      torch::bincount(routing.expert_index_NK.flatten(), {}, config.n_routed_experts);
  if (torch::GradMode::is_enabled()) {
    Tensor counts = routing.counts_E;
    if (options.distribution && options.distribution->batch.size() > 1) {
      counts = counts.clone();
      options.distribution->batch.all_reduce(counts);
    }
    const Tensor share = counts.to(torch::kFloat32) / counts.sum().item<double>();
    const Tensor mean_score = (scores / scores.sum(1, true)).mean(0);
    routing.balance = (share * mean_score).sum() * static_cast<double>(config.n_routed_experts);
  }
  return routing;
}

Tensor mlp(const MlpWeights& weights, const Tensor& x_ND, const ForwardOptions& options) {
  const ops::LinearOptions linear{options.bf16_matmuls, options.mode == NumericMode::kDeploy};
  const Tensor gate = ops::linear(x_ND, weights.gate_proj, linear);
  const Tensor up = ops::linear(x_ND, weights.up_proj, linear);
  return ops::linear(ops::swiglu(gate, up), weights.down_proj, linear);
}

Tensor moe(const MoeWeights& weights, const Tensor& x_ND, const Routing& routing,
           const ForwardOptions& options) {
  const auto plan =
      ops::plan_experts(routing.expert_index_NK, static_cast<int64_t>(weights.experts.size()));
  const auto x_of_expert = ops::gather_to_experts(x_ND, plan).split_with_sizes(plan.counts_E);
  std::vector<Tensor> outputs;
  for (size_t e = 0; e < weights.experts.size(); ++e)
    if (plan.counts_E[e] > 0) outputs.push_back(mlp(weights.experts[e], x_of_expert[e], options));
  const Tensor routed =
      ops::combine_from_experts(torch::cat(outputs), routing.expert_weight_NK, plan);
  return routed + mlp(weights.shared_experts, x_ND, options);
}

}  // namespace fathom::model
