// DeepSeekMoE's experts, and the balance loss of the report of V3, section 2.1.2, eq. (17) to (20).
#include "model/moe.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "model/loss.h"
#include "model/ops.h"
#include "model/test_config.h"

namespace fathom::model {
namespace {

using torch::Tensor;

// The equations, term by term, in double precision.
double balance_by_the_book(const Tensor& scores_TE, const Tensor& index_TK) {
  const int64_t tokens = scores_TE.size(0), experts = scores_TE.size(1), k = index_TK.size(1);
  double sum = 0;
  for (int64_t e = 0; e < experts; ++e) {
    double count = 0, mean = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < k; ++j) count += index_TK[t][j].item<int64_t>() == e;
      double total = 0;
      for (int64_t other = 0; other < experts; ++other) total += scores_TE[t][other].item<double>();
      mean += scores_TE[t][e].item<double>() / total / static_cast<double>(tokens);
    }
    sum += static_cast<double>(experts) / static_cast<double>(k * tokens) * count * mean;
  }
  return sum;
}

struct Router {
  Config config;
  MoeWeights weights;
  Tensor x_ND;

  explicit Router(int64_t tokens, const Config& of = tiny_config()) : config(of) {
    torch::manual_seed(4);
    weights.gate.weight = torch::randn({config.n_routed_experts, config.hidden_size});
    weights.gate.weight.set_requires_grad(true);
    if (config.has_expert_bias())
      weights.e_score_correction_bias = torch::zeros({config.n_routed_experts});
    x_ND = torch::randn({tokens, config.hidden_size});
  }
  Tensor scores() const { return x_ND.matmul(weights.gate.weight.detach().t()).sigmoid(); }
};

// One token's experts, ascending, and their weights: term by term, in double precision, each expert
// taken by looking through all that are left.
struct ChosenByTheBook {
  std::vector<int64_t> experts;
  std::vector<double> weights;
};

std::vector<int64_t> best_of(std::vector<int64_t> from, int64_t count,
                             const std::function<double(int64_t)>& value) {
  std::vector<int64_t> chosen;
  while (std::ssize(chosen) < count) {
    auto best = from.begin();
    for (auto it = from.begin(); it != from.end(); ++it)
      if (value(*it) > value(*best)) best = it;
    chosen.push_back(*best);
    from.erase(best);
  }
  return chosen;
}

ChosenByTheBook choose_by_the_book(const Config& c, const Tensor& logits_E) {
  std::vector<double> score(c.n_routed_experts);
  double sum = 0;
  for (size_t e = 0; e < score.size(); ++e)
    sum += score[e] = std::exp(logits_E[static_cast<int64_t>(e)].item<double>());
  for (double& value : score) value /= sum;
  const int64_t size = c.n_routed_experts / c.n_group;
  std::vector<int64_t> groups(c.n_group), allowed;
  std::iota(groups.begin(), groups.end(), 0);
  if (c.topk_method == TopkMethod::kGroupLimitedGreedy)
    groups = best_of(groups, c.topk_group, [&](int64_t g) {
      return *std::max_element(score.begin() + g * size, score.begin() + (g + 1) * size);
    });
  for (int64_t g : groups)
    for (int64_t e = g * size; e < (g + 1) * size; ++e) allowed.push_back(e);
  ChosenByTheBook out;
  out.experts = best_of(allowed, c.num_experts_per_tok, [&](int64_t e) { return score[e]; });
  std::sort(out.experts.begin(), out.experts.end());
  double chosen_sum = 0;
  for (int64_t e : out.experts) chosen_sum += score[e];
  for (int64_t e : out.experts)
    out.weights.push_back(score[e] * c.routed_scaling_factor / (c.norm_topk_prob ? chosen_sum : 1));
  return out;
}

// V2's 160 experts in 8 groups, 6 experts of 3 groups a token.
Config v2_config(TopkMethod method) {
  Config config = tiny_config();
  config.scoring_func = ScoringFunc::kSoftmax;
  config.topk_method = method;
  config.n_routed_experts = 160;
  config.num_experts_per_tok = 6;
  config.n_group = 8;
  config.topk_group = 3;
  config.routed_scaling_factor = 16;
  return config;
}

TEST(RouteV2, ChoosesAndWeighsAsTheScalarReference) {
  const torch::NoGradGuard no_grad;
  for (const auto method : {TopkMethod::kGreedy, TopkMethod::kGroupLimitedGreedy})
    for (const bool normalises : {false, true}) {
      Router router(50, v2_config(method));
      router.config.norm_topk_prob = normalises;
      const Routing routing = route(router.weights, router.config, router.x_ND, {});
      const Tensor logits = router.x_ND.matmul(router.weights.gate.weight.t());
      for (int64_t n = 0; n < 50; ++n) {
        const ChosenByTheBook expected = choose_by_the_book(router.config, logits[n]);
        for (int64_t k = 0; k < 6; ++k) {
          EXPECT_EQ(routing.expert_index_NK[n][k].item<int64_t>(), expected.experts[k]) << n;
          EXPECT_NEAR(routing.expert_weight_NK[n][k].item<double>(), expected.weights[k], 1e-4);
        }
      }
      EXPECT_EQ(routing.counts_E.sum().item<int64_t>(), 50 * 6);
    }
}

// Two experts of one group are together more than those of the other, which has the best one.
TEST(RouteV2, RanksGroupsByTheirBestExpert) {
  const torch::NoGradGuard no_grad;
  Router router(1, v2_config(TopkMethod::kGroupLimitedGreedy));
  router.config.n_routed_experts = 4;
  router.config.n_group = 2;
  router.config.topk_group = router.config.num_experts_per_tok = 1;
  router.weights.gate.weight = torch::zeros({4, router.config.hidden_size});
  router.x_ND = torch::zeros({1, router.config.hidden_size});
  router.x_ND[0][0] = 1;
  const std::vector<float> logits = {1.9f, 1.8f, 2.0f, -5.0f};
  for (int64_t e = 0; e < 4; ++e) router.weights.gate.weight[e][0] = logits[e];
  const auto chosen = [&] {
    return route(router.weights, router.config, router.x_ND, {}).expert_index_NK.item<int64_t>();
  };
  EXPECT_EQ(chosen(), 2);
  router.config.topk_method = TopkMethod::kNoauxTc;
  router.weights.e_score_correction_bias = torch::zeros({4});
  EXPECT_EQ(chosen(), 0);
}

TEST(RouteV2, ATokensRoutingDoesNotDependOnTheBatch) {
  const torch::NoGradGuard no_grad;
  const Router router(33, v2_config(TopkMethod::kGroupLimitedGreedy));
  const Routing all = route(router.weights, router.config, router.x_ND, {});
  for (const int64_t n : {0, 17, 32}) {
    const Routing one = route(router.weights, router.config, router.x_ND.narrow(0, n, 1), {});
    EXPECT_TRUE(one.expert_index_NK[0].equal(all.expert_index_NK[n]));
    EXPECT_TRUE(one.expert_weight_NK[0].equal(all.expert_weight_NK[n]));
  }
}

// The choice is held fixed, as the gradient has it.
TEST(RouteV2, GradientsOfWeightsAndBalanceEqualCentralDifferences) {
  for (const bool normalises : {false, true}) {
    Router router(12, v2_config(TopkMethod::kGroupLimitedGreedy));
    router.config.norm_topk_prob = normalises;
    const Routing routing = route(router.weights, router.config, router.x_ND, {});
    torch::manual_seed(8);
    const Tensor cotangent = torch::randn({12, 6});
    ((routing.expert_weight_NK * cotangent).sum() + routing.balance).backward();
    const Tensor gradient = router.weights.gate.weight.grad().flatten();
    const Tensor x = router.x_ND.to(torch::kDouble);
    const Tensor gate = router.weights.gate.weight.detach().to(torch::kDouble);
    const auto objective = [&] {
      const Tensor scores = x.matmul(gate.t()).softmax(1);
      const Tensor chosen = scores.gather(1, routing.expert_index_NK);
      const Tensor share = routing.counts_E.to(torch::kDouble) / (12 * 6);
      return ((16 * (normalises ? chosen / chosen.sum(1, true) : chosen) * cotangent).sum() +
              160 * (share * scores.mean(0)).sum())
          .item<double>();
    };
    Tensor flat = gate.view(-1);
    for (int64_t i = 0; i < flat.numel(); i += 61) {
      const double original = flat[i].item<double>(), step = 1e-5;
      flat[i] = original + step;
      const double above = objective();
      flat[i] = original - step;
      const double below = objective();
      flat[i] = original;
      EXPECT_NEAR(gradient[i].item<double>(), (above - below) / (2 * step), 1e-4) << i;
    }
  }
}

Linear stored(torch::ScalarType type, int64_t rows, int64_t cols) {
  const Tensor w = torch::randn({rows, cols});
  if (type != torch::kByte) return {w.to(type), {}};
  const Tensor bits = torch::randint(0, 256, {rows, cols}, torch::kByte);
  return {torch::where(bits.bitwise_and(127) == 127, torch::zeros_like(bits), bits),
          torch::full({(rows + 127) / 128, (cols + 127) / 128}, 1.0f / 64)};
}

// What moe computes together, expert by expert.
Tensor expert_by_expert(const MoeWeights& weights, const Tensor& x_ND, const Routing& routing,
                        const ForwardOptions& options) {
  const auto plan = ops::plan_experts(routing.expert_index_NK, std::ssize(weights.experts));
  const auto rows = ops::gather_to_experts(x_ND, plan).split_with_sizes(plan.counts_E);
  std::vector<Tensor> outputs;
  for (size_t e = 0; e < weights.experts.size(); ++e)
    if (plan.counts_E[e] > 0) outputs.push_back(mlp(weights.experts[e], rows[e], options));
  return ops::combine_from_experts(torch::cat(outputs), routing.expert_weight_NK, plan) +
         mlp(weights.shared_experts, x_ND, options);
}

TEST(Moe, ExpertsTogetherHaveTheBitsOfEachAloneInAnyFormats) {
  const torch::NoGradGuard no_grad;
  constexpr torch::ScalarType kTypes[] = {torch::kFloat32, torch::kBFloat16, torch::kHalf,
                                          torch::kByte};
  for (const auto gate_type : kTypes)
    for (const auto down_type : kTypes)
      for (const int64_t tokens : {1, 3, 40}) {
        Router router(tokens);
        const int64_t hidden = router.config.hidden_size;
        const auto mlp_of = [&](int64_t width) {
          return MlpWeights{stored(gate_type, width, hidden), stored(gate_type, width, hidden),
                            stored(down_type, hidden, width)};
        };
        for (int64_t e = 0; e < router.config.n_routed_experts; ++e)
          router.weights.experts.push_back(mlp_of(72));
        router.weights.shared_experts = mlp_of(200);
        const Routing routing = route(router.weights, router.config, router.x_ND, {});
        for (const auto mode : {NumericMode::kPlain, NumericMode::kDeploy})
          for (const bool bf16 : {false, true}) {
            const ForwardOptions options{.mode = mode, .bf16_matmuls = bf16};
            const Tensor before = router.x_ND.clone();
            const Tensor out = moe(router.weights, router.x_ND, routing, options);
            EXPECT_TRUE(out.equal(expert_by_expert(router.weights, before, routing, options)))
                << gate_type << " " << down_type << " " << tokens << " " << bf16;
            EXPECT_TRUE(router.x_ND.equal(before));
          }
      }
}

TEST(BalanceLoss, IsTheReportsEquationsOverTheBatchAndOverEachSequence) {
  const Router router(30);
  const Tensor scores = router.scores();
  const Routing batch = route(router.weights, router.config, router.x_ND, {});
  EXPECT_NEAR(batch.balance.item<double>(), balance_by_the_book(scores, batch.expert_index_NK),
              1e-5);
  const std::vector<int64_t> lengths = {10, 17, 3};
  const Routing sequences =
      route(router.weights, router.config, router.x_ND, {.balance_sequences = lengths});
  double expected = 0;
  int64_t begin = 0;
  for (const int64_t length : lengths) {
    const double one = balance_by_the_book(scores.narrow(0, begin, length),
                                           batch.expert_index_NK.narrow(0, begin, length));
    expected += one * static_cast<double>(length) / 30;
    begin += length;
  }
  EXPECT_NEAR(sequences.balance.item<double>(), expected, 1e-5);
  EXPECT_GT(std::abs(expected - batch.balance.item<double>()), 1e-3);
}

// Experts that take turns from one sequence to the next: the batch is balanced, no sequence is.
TEST(BalanceLoss, SeesASequenceThatIsUnbalancedInABalancedBatch) {
  const Tensor scores = torch::tensor({{0.9f, 0.1f}, {0.9f, 0.1f}, {0.1f, 0.9f}, {0.1f, 0.9f}});
  const Tensor index = torch::tensor({{0}, {0}, {1}, {1}}, torch::kLong);
  EXPECT_NEAR(balance_of(scores, index).item<double>(), 1, 1e-6);
  EXPECT_NEAR(balance_of(scores.narrow(0, 0, 2), index.narrow(0, 0, 2)).item<double>(), 1.8, 1e-6);
}

TEST(BalanceLoss, ItsGradientEqualsCentralDifferences) {
  Router router(30);
  const std::vector<int64_t> lengths = {10, 20};
  route(router.weights, router.config, router.x_ND, {.balance_sequences = lengths})
      .balance.backward();
  const Tensor gradient = router.weights.gate.weight.grad();
  const Tensor index = route(router.weights, router.config, router.x_ND, {}).expert_index_NK;
  const auto balance = [&] {  // with the choice held fixed, as the gradient has it
    const Tensor scores = router.scores();
    return (10 * balance_by_the_book(scores.narrow(0, 0, 10), index.narrow(0, 0, 10)) +
            20 * balance_by_the_book(scores.narrow(0, 10, 20), index.narrow(0, 10, 20))) /
           30;
  };
  const torch::NoGradGuard no_grad;
  Tensor flat = router.weights.gate.weight.view(-1);
  for (int64_t i = 0; i < flat.numel(); i += 7) {
    const float original = flat[i].item<float>(), step = 1e-2f;
    flat[i] = original + step;
    const double above = balance();
    flat[i] = original - step;
    const double below = balance();
    flat[i] = original;
    EXPECT_NEAR(gradient.flatten()[i].item<double>(), (above - below) / (2 * step), 1e-4) << i;
  }
}

// A row is a sequence however many documents are packed into it.
TEST(BalanceLoss, ARowOfPackedDocumentsIsOneSequence) {
  const Model model = initialise(tiny_config(), 3);
  torch::manual_seed(5);
  TrainingBatch batch{torch::randint(50, {24}, torch::kLong),
                      torch::randint(50, {24}, torch::kLong),
                      {4, 8, 12},
                      {12, 12}};
  LossOptions options{.mtp_weight = 0,
                      .balance_weight = 1,
                      .balance = Balance::kSequence,
                      .forward = {.form = AttentionForm::kMha, .sparse = false}};
  const auto balance = [&] {
    const Losses losses = language_model_loss(model, batch, options);
    return losses.total.item<double>() - losses.main;
  };
  const double two_rows = balance();
  batch.sequence_lengths = {24};
  const double one_row = balance();
  options.balance = Balance::kBatch;
  EXPECT_NEAR(balance(), one_row, 1e-6);
  EXPECT_GT(std::abs(two_rows - one_row), 1e-4);
}

}  // namespace
}  // namespace fathom::model
