// DeepSeekMoE's experts, and the balance loss of the report of V3, section 2.1.2, eq. (17) to (20).
#include "model/moe.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

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
  Config config = tiny_config();
  MoeWeights weights;
  Tensor x_ND;

  explicit Router(int64_t tokens) {
    torch::manual_seed(4);
    weights.gate.weight = torch::randn({config.n_routed_experts, config.hidden_size});
    weights.gate.weight.set_requires_grad(true);
    weights.e_score_correction_bias = torch::zeros({config.n_routed_experts});
    x_ND = torch::randn({tokens, config.hidden_size});
  }
  Tensor scores() const { return x_ND.matmul(weights.gate.weight.detach().t()).sigmoid(); }
};

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
