#include "model/draft_divergence.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

#include "model/loss.h"
#include "model/test_config.h"

namespace fathom::model {
namespace {

using torch::Tensor;

Tensor normal(std::vector<int64_t> shape, int seed) {
  torch::manual_seed(seed);
  return torch::randn(shape);
}

struct Exact {
  double divergence, overlap;
};

Exact exact(const Tensor& draft, const Tensor& model, const Tensor& head) {
  const auto log_softmax = [&](const Tensor& x) {
    return x.to(torch::kDouble).matmul(head.to(torch::kDouble).t()).log_softmax(1);
  };
  const Tensor log_q = log_softmax(draft), log_p = log_softmax(model);
  return {(log_p.exp() * (log_p - log_q)).sum(1).mean().item<double>(),
          torch::minimum(log_p.exp(), log_q.exp()).sum(1).mean().item<double>()};
}

// 600 rows: two whole blocks and a part of one.
TEST(DraftDivergence, EqualsTheFormulaAndItsCentralDifferences) {
  const Tensor model = normal({600, 11}, 1), head = normal({23, 11}, 2);
  const Tensor draft = (model + 0.3 * normal({600, 11}, 3)).set_requires_grad(true);
  const DraftDivergence result = draft_divergence(draft, model, {head, {}}, {});
  const Exact expected = exact(draft.detach(), model, head);
  EXPECT_NEAR(result.loss.item<double>(), expected.divergence, 1e-5);
  EXPECT_NEAR(result.overlap, expected.overlap, 1e-5);
  EXPECT_GT(expected.overlap, 0.5);
  (2 * result.loss).backward();
  const Tensor gradient = draft.grad().to(torch::kDouble).view(-1);
  Tensor moved = draft.detach().to(torch::kDouble);
  Tensor flat = moved.view(-1);
  for (int64_t i = 0; i < flat.numel(); i += 97) {
    const double original = flat[i].item<double>(), step = 1e-4;
    flat[i] = original + step;
    const double above = exact(moved, model, head).divergence;
    flat[i] = original - step;
    const double below = exact(moved, model, head).divergence;
    flat[i] = original;
    // The mean over 600 rows makes gradients of some 1e-3.
    EXPECT_NEAR(gradient[i].item<double>(), (above - below) / step, 2e-7) << i;
  }
}

TEST(DraftDivergence, IsNothingBetweenEqualsAndWithoutRows) {
  Tensor draft = normal({5, 8}, 1).set_requires_grad(true);
  const Linear head{normal({40, 8}, 2), {}};
  const DraftDivergence equal =
      draft_divergence(draft, draft.detach().clone(), head, {.bf16_matmuls = true});
  EXPECT_EQ(equal.loss.item<double>(), 0);
  EXPECT_NEAR(equal.overlap, 1, 1e-6);
  equal.loss.backward();
  EXPECT_EQ(draft.grad().abs().max().item<double>(), 0);
  const DraftDivergence none =
      draft_divergence(torch::empty({0, 8}), torch::empty({0, 8}), head, {});
  EXPECT_EQ(none.loss.item<double>(), 0);
  EXPECT_EQ(none.overlap, 0);
}

// Two segments: the last token of each has no successor whose prediction it could be held against,
// nor has one whose next token is not known.
TEST(MtpDivergenceLoss, HoldsEachGuessAgainstThePredictionOneTokenLater) {
  Model model = initialise(tiny_config(), 3);
  torch::manual_seed(5);
  TrainingBatch batch{
      torch::randint(50, {24}, torch::kLong), torch::randint(50, {24}, torch::kLong), {10, 14}};
  batch.targets_N[20] = -1;  // so that 19 has no target after the next, nor has 20
  const LossOptions options{
      .balance_weight = 0,
      .forward = {.form = AttentionForm::kMha, .sparse = false, .indexer_loss = true}};
  const Losses losses = mtp_divergence_loss(model, batch, options);
  losses.total.backward();
  EXPECT_EQ(losses.indexer.size(), 1u);  // MTP's
  for (const TensorSlot& slot : tensor_slots(model.weights, model.config)) {
    if (slot.role == Role::kExpertBias) continue;
    const bool is_reached =
        is_mtp(slot, model.config) || slot.tensor == &model.weights.embed_tokens;
    EXPECT_EQ(slot.tensor->grad().defined(), is_reached) << slot.name;
  }
  const torch::NoGradGuard no_grad;
  const std::vector<Segment> segments = {{10, 0, nullptr}, {14, 0, nullptr}};
  const Tensor hidden = forward(model, batch.tokens_N, segments, options.forward);
  const Tensor drafts =
      forward_mtp(model, hidden, batch.targets_N.clamp_min(0), segments, options.forward);
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < 23; ++i)
    if (i != 9 && i != 19 && i != 20) rows.push_back(i);
  const Tensor index = torch::tensor(rows);
  const Exact expected = exact(drafts.index_select(0, index), hidden.index_select(0, index + 1),
                               model.weights.lm_head.weight);
  EXPECT_NEAR(losses.mtp_divergence, expected.divergence, 1e-5);
  EXPECT_NEAR(losses.mtp_overlap, expected.overlap, 1e-5);
  EXPECT_EQ(losses.main, 0);
  EXPECT_EQ(losses.expert_counts.size(), 1u);
}

}  // namespace
}  // namespace fathom::model
