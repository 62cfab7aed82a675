#include "model/moe.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "model/distribution.h"
#include "model/ops.h"
#include "model/rank_ops.h"

namespace fathom::model {
namespace {

using torch::Tensor;

// Chooses one token's experts by scores, with the bias where there is one; writes them in ascending
// order.
class ExpertChooser {
 public:
  explicit ExpertChooser(const Config& config)
      : c_(config),
        num_groups_(config.topk_method == TopkMethod::kGreedy ? 1 : config.n_group),
        group_size_(config.n_routed_experts / num_groups_) {}

  void choose(const float* scores, int64_t* chosen) {
    order_.clear();
    for (int64_t group : best_groups(scores))
      for (int64_t e = group * group_size_; e < (group + 1) * group_size_; ++e) order_.push_back(e);
    keep_best(order_, c_.num_experts_per_tok, [&](int64_t e) { return scores[e]; });
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

  const std::vector<int64_t>& best_groups(const float* scores) {
    groups_.resize(num_groups_);
    std::iota(groups_.begin(), groups_.end(), int64_t{0});
    if (num_groups_ == 1 || c_.topk_group == num_groups_) return groups_;
    const bool sums_two = c_.topk_method == TopkMethod::kNoauxTc;
    const auto group_score = [&](int64_t g) {
      float best = -std::numeric_limits<float>::infinity(), second = best;
      for (int64_t e = g * group_size_; e < (g + 1) * group_size_; ++e) {
        second = std::max(second, std::min(best, scores[e]));
        best = std::max(best, scores[e]);
      }
      return sums_two ? best + second : best;
    };
    keep_best(groups_, c_.topk_group, group_score);
    return groups_;
  }

  const Config& c_;
  int64_t num_groups_, group_size_;
  std::vector<int64_t> order_, groups_;
};

}  // namespace

namespace {

// The balance statistic of tokens of a set whose load is counts_E: their part of it, divided by
// what they are of its tokens, so that parts add up when weighted by their tokens.
Tensor balance_under_load(const Tensor& scores_TE, const Tensor& counts_E) {
  const Tensor share = counts_E.to(torch::kFloat32) / counts_E.sum().item<double>();
  const Tensor mean_score = (scores_TE / scores_TE.sum(1, true)).mean(0);
  return (share * mean_score).sum() * static_cast<double>(scores_TE.size(1));
}

Tensor loads_of(const Tensor& expert_index_TK, int64_t num_experts) {
  return torch::bincount(expert_index_TK.flatten(), {}, num_experts);
}

// Of each of options.balance_sequences, or of the batch as one: [S, E]. A sequence may reach over
// several ranks, and then its load is that on all of them.
Tensor sequence_loads(const Tensor& expert_index_NK, std::span<const int64_t> lengths,
                      int64_t num_experts, const ForwardOptions& options) {
  std::vector<Tensor> loads;
  int64_t begin = 0;
  for (const int64_t length : lengths) {
    loads.push_back(loads_of(expert_index_NK.narrow(0, begin, length), num_experts));
    begin += length;
  }
  CHECK_EQ(begin, expert_index_NK.size(0));
  const Tensor loads_SE = torch::stack(loads);
  if (options.distribution) options.distribution->batch.all_reduce(loads_SE);
  return loads_SE;
}

Tensor mean_balance(const Tensor& scores_NE, const Tensor& expert_index_NK,
                    const ForwardOptions& options) {
  const int64_t num_tokens = scores_NE.size(0);
  std::span<const int64_t> lengths = options.balance_sequences;
  if (lengths.empty()) lengths = {&num_tokens, 1};
  const Tensor loads_SE = sequence_loads(expert_index_NK, lengths, scores_NE.size(1), options);
  if (lengths.size() == 1) return balance_under_load(scores_NE, loads_SE[0]);
  std::vector<Tensor> parts;
  int64_t begin = 0;
  for (size_t i = 0; i < lengths.size(); begin += lengths[i++])
    if (lengths[i] > 0)  // else it is on other ranks
      parts.push_back(static_cast<double>(lengths[i]) *
                      balance_under_load(scores_NE.narrow(0, begin, lengths[i]),
                                         loads_SE[static_cast<int64_t>(i)]));
  return torch::stack(parts).sum() / static_cast<double>(num_tokens);
}

}  // namespace

Tensor balance_of(const Tensor& scores_TE, const Tensor& expert_index_TK) {
  return balance_under_load(scores_TE, loads_of(expert_index_TK, scores_TE.size(1)));
}

namespace {

// Fills expert_index_NK and counts_E. bias_E: undefined where the config has none.
void choose_experts(const Tensor& scores_NE, const Tensor& bias_E, const Config& config,
                    Routing& routing) {
  const int64_t tokens = scores_NE.size(0), num_experts = config.n_routed_experts;
  routing.expert_index_NK = torch::empty({tokens, config.num_experts_per_tok}, torch::kLong);
  routing.counts_E = torch::zeros({num_experts}, torch::kLong);
  const View2<const float> scores = ops::view2(scores_NE);
  const float* const bias = config.has_expert_bias() ? bias_E.data_ptr<float>() : nullptr;
  int64_t* chosen = routing.expert_index_NK.data_ptr<int64_t>();
  int64_t* const counts = routing.counts_E.data_ptr<int64_t>();
  ExpertChooser chooser(config);
  std::vector<float> biased(num_experts);
  for (int64_t n = 0; n < tokens; ++n, chosen += config.num_experts_per_tok) {
    if (bias)
      for (int64_t e = 0; e < num_experts; ++e) biased[e] = scores[n][e] + bias[e];
    chooser.choose(bias ? biased.data() : scores[n], chosen);
    for (int64_t k = 0; k < config.num_experts_per_tok; ++k) ++counts[chosen[k]];
  }
}

}  // namespace

Routing route(const MoeWeights& weights, const Config& config, const Tensor& x_ND,
              const ForwardOptions& options) {
  // The router stays in f32 whatever the other matmuls do.
  const Tensor logits = ops::linear(x_ND, weights.gate, {});
  const bool is_softmax = config.scoring_func == ScoringFunc::kSoftmax;
  const Tensor scores = is_softmax ? ops::softmax(logits) : ops::sigmoid(logits);
  Routing routing;
  choose_experts(scores.detach(), weights.e_score_correction_bias, config, routing);
  routing.expert_weight_NK = ops::expert_weights(
      scores, routing.expert_index_NK, config.norm_topk_prob, config.routed_scaling_factor);
  if (torch::GradMode::is_enabled())
    routing.balance = mean_balance(scores, routing.expert_index_NK, options);
  return routing;
}

Tensor mlp(const MlpWeights& weights, const Tensor& x_ND, const ForwardOptions& options) {
  const ops::LinearOptions linear{options.bf16_matmuls, options.mode == NumericMode::kDeploy};
  const auto gate_up = ops::linear_group(x_ND, {&weights.gate_proj, &weights.up_proj}, linear);
  return ops::linear(ops::swiglu(gate_up[0], gate_up[1]), weights.down_proj, linear);
}

namespace {

// x_MD: rows in the order of the experts, counts_E of each.
Tensor run_experts(std::span<const MlpWeights> experts, const Tensor& x_MD,
                   const std::vector<int64_t>& counts_E, const ForwardOptions& options) {
  const auto x_of_expert = x_MD.split_with_sizes(counts_E);
  std::vector<Tensor> outputs;
  for (size_t e = 0; e < experts.size(); ++e)
    if (counts_E[e] > 0) outputs.push_back(mlp(experts[e], x_of_expert[e], options));
  return outputs.empty() ? x_MD : torch::cat(outputs);
}

// The rows of several blocks, each of which holds counts[block][expert] rows in the order of the
// experts: their indices in the order of the experts, within one in that of the blocks.
Tensor order_by_expert(const std::vector<std::vector<int64_t>>& counts) {
  std::vector<int64_t> next, order;  // next: the row of each block that comes next
  int64_t rows = 0;
  for (const auto& block : counts) {
    next.push_back(rows);
    rows = std::accumulate(block.begin(), block.end(), rows);
  }
  for (size_t e = 0; e < counts[0].size(); ++e)
    for (size_t block = 0; block < counts.size(); ++block)
      for (int64_t i = 0; i < counts[block][e]; ++i) order.push_back(next[block]++);
  return torch::tensor(order, torch::kLong);
}

// The same as run_experts, where each rank computes a part of the experts: rows go to the ranks of
// their experts and come back.
Tensor run_split_experts(const MoeWeights& weights, const Tensor& x_MD,
                         const std::vector<int64_t>& counts_E, const ForwardOptions& options) {
  const RankGroup& ranks = options.distribution->experts;
  const auto num_experts = std::ssize(weights.experts);
  CHECK_EQ(num_experts % ranks.size(), 0);
  const int64_t num_mine = num_experts / ranks.size();
  const std::vector<int64_t> even(ranks.size(), num_mine);
  const Tensor all = ranks.all_to_all(torch::tensor(counts_E, torch::kLong), even, even);
  ops::RowExchange rows;
  std::vector<std::vector<int64_t>> received;  // by rank, then by expert of this rank
  std::vector<int64_t> total(num_mine);
  for (int64_t rank = 0; rank < ranks.size(); ++rank) {
    const int64_t* const from = all.data_ptr<int64_t>() + rank * num_mine;
    received.emplace_back(from, from + num_mine);
    const auto to = counts_E.begin() + rank * num_mine;
    rows.send_counts.push_back(std::accumulate(to, to + num_mine, int64_t{0}));
    rows.receive_counts.push_back(std::accumulate(from, from + num_mine, int64_t{0}));
    for (int64_t e = 0; e < num_mine; ++e) total[e] += received.back()[e];
  }
  const Tensor order = order_by_expert(received);
  const Tensor x = ops::exchange_rows(x_MD, ranks, rows).index_select(0, order);
  const Tensor y = run_experts(
      std::span(weights.experts).subspan(ranks.rank() * num_mine, num_mine), x, total, options);
  std::swap(rows.send_counts, rows.receive_counts);
  return ops::exchange_rows(y.index_select(0, order.argsort()), ranks, rows);
}

// Whether run_together may take these experts: weights of one format.
bool go_together(const MoeWeights& weights, const ops::LinearOptions& linear) {
  const Linear& first = weights.shared_experts.gate_proj;
  const auto is_alike = [&](const MlpWeights& mlp) {
    const auto type = first.weight.scalar_type();
    return mlp.gate_proj.weight.scalar_type() == type && mlp.up_proj.weight.scalar_type() == type &&
           mlp.down_proj.weight.scalar_type() == type;
  };
  return ops::goes_together(first, linear) && is_alike(weights.shared_experts) &&
         std::all_of(weights.experts.begin(), weights.experts.end(), is_alike);
}

// Rows of experts and shared experts product by product, where expert by expert each would have
// too few of them to share out.
Tensor run_together(const MoeWeights& weights, const Tensor& x_ND, const Routing& routing,
                    const ops::ExpertPlan& plan, const ops::LinearOptions& linear) {
  const Tensor input = ops::through_fp8(x_ND, weights.shared_experts.gate_proj, linear);
  const Tensor x_MD = ops::gather_to_experts(input, plan), y_MD = torch::empty_like(x_MD);
  const Tensor shared = torch::empty_like(input);
  std::vector<ops::MlpRows> mlps;
  int64_t begin = 0;
  for (size_t e = 0; e < weights.experts.size(); begin += plan.counts_E[e++]) {
    const int64_t end = begin + plan.counts_E[e];
    if (begin < end)
      mlps.push_back({&weights.experts[e], ops::view2(x_MD).slice_rows(begin, end),
                      ops::view2(y_MD).slice_rows(begin, end)});
  }
  mlps.push_back({&weights.shared_experts, ops::view2(input), ops::view2(shared)});
  ops::mlp_group(mlps, linear);
  return ops::combine_from_experts(y_MD, routing.expert_weight_NK, plan).add_(shared);
}

}  // namespace

Tensor moe(const MoeWeights& weights, const Tensor& x_ND, const Routing& routing,
           const ForwardOptions& options) {
  const auto plan =
      ops::plan_experts(routing.expert_index_NK, static_cast<int64_t>(weights.experts.size()));
  const ops::LinearOptions linear{options.bf16_matmuls, options.mode == NumericMode::kDeploy};
  const bool is_split = options.distribution && options.distribution->experts.size() > 1;
  if (!is_split && go_together(weights, linear))
    return run_together(weights, x_ND, routing, plan, linear);
  const Tensor x = ops::gather_to_experts(x_ND, plan);
  const Tensor y = is_split ? run_split_experts(weights, x, plan.counts_E, options)
                            : run_experts(weights.experts, x, plan.counts_E, options);
  return ops::combine_from_experts(y, routing.expert_weight_NK, plan) +
         mlp(weights.shared_experts, x_ND, options);
}

}  // namespace fathom::model
