// The cuts of the indexer's training, taken away one at a time: what then reaches the main model.
#include "model/teacher_gradient.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "model/attention_probabilities.h"
#include "model/loss.h"
#include "model/test_config.h"

namespace fathom::model {
namespace {

using torch::Tensor;

const std::vector<int64_t> kLengths = {80, 40};
const kernels::AttentionShape kShape{2, 4, 4, 0.5f};

struct Case {
  Tensor q = torch::randn({120, 8}) * 2, k = torch::randn({120, 8});
  ops::IndexerLossStudent student{torch::randn({120, 3 * 6}), torch::randn({120, 3}),
                                  torch::randn({120, 6})};
  ops::KeySelection selection;

  ops::IndexerLossTeacher teacher(const Tensor& q_used, const Tensor& k_used) const {
    const auto attended = ops::attend(q_used, k_used, torch::zeros_like(k_used), kShape,
                                      ops::segment_rows(kLengths), selection);
    return {q_used, k_used, attended.lse_HN, kShape};
  }
  double loss(const Tensor& q_used, const Tensor& k_used) const {
    const torch::NoGradGuard no_grad;
    return ops::indexer_loss(student, teacher(q_used, k_used), ops::segment_rows(kLengths),
                             selection, 0)
        .loss.item<double>();
  }
};

// The same number of keys everywhere; the last ones and one far away.
ops::KeySelection some_keys() {
  std::vector<std::vector<int32_t>> keys_N;
  for (int64_t length : kLengths)
    for (int32_t t = 0; t < length; ++t) {
      keys_N.emplace_back();
      if (t > 4) keys_N.back().push_back(t / 3);
      for (int32_t s = std::max(0, t - 1); s <= t; ++s) keys_N.back().push_back(s);
    }
  return ops::join_keys(keys_N);
}

TEST(TeacherGradient, EqualsDifferencesOfTheLoss) {
  for (const bool is_sparse : {false, true}) {
    torch::manual_seed(3);
    Case c;
    if (is_sparse) c.selection = some_keys();
    Tensor q = c.q.clone().set_requires_grad(true), k = c.k.clone().set_requires_grad(true);
    const Tensor value = ops::teacher_gradient(c.student, c.teacher(q, k), kLengths, c.selection);
    EXPECT_EQ(value.item<double>(), 0);
    value.backward();
    for (const bool is_q : {true, false}) {
      const Tensor direction = torch::randn_like(c.q), gradient = is_q ? q.grad() : k.grad();
      const double step = 1e-2, found = (gradient * direction).sum().item<double>();
      const auto at = [&](double distance) {
        const Tensor moved = (is_q ? c.q : c.k) + direction * distance;
        return is_q ? c.loss(moved, c.k) : c.loss(c.q, moved);
      };
      EXPECT_NEAR(found, (at(step) - at(-step)) / (2 * step), 0.01 * std::abs(found) + 1e-4)
          << is_sparse << is_q;
      EXPECT_GT(std::abs(found), 1e-3);
    }
  }
}

// Of uniform attention over t + 1 keys it is log(t + 1); over two selected ones log 2.
TEST(MeanEntropy, OfUniformAttentionIsTheLogarithmOfTheKeys) {
  const std::vector<int64_t> lengths = {70};
  const AttendedSegments uniform{torch::zeros({70, 8}), torch::randn({70, 8}), kShape, lengths};
  double expected = 0;
  for (int t = 0; t < 70; ++t) expected += std::log(t + 1) / 70;
  EXPECT_NEAR(mean_entropy(uniform, {}), expected, 1e-5);
  std::vector<std::vector<int32_t>> keys_N(70, {0});
  for (int32_t t = 1; t < 70; ++t) keys_N[t] = {0, t};
  EXPECT_NEAR(mean_entropy(uniform, ops::join_keys(keys_N)), std::log(2) * 69 / 70, 1e-5);
}

Tensor gradient_of(const Model& model, const Tensor& weight, const ForwardOptions& forward) {
  torch::manual_seed(5);
  const Tensor tokens = torch::randint(50, {24}, torch::kLong);
  language_model_loss(model, {tokens, tokens.roll(-1), {24}}, {.forward = forward})
      .total.backward();
  const Tensor gradient = weight.grad().clone();
  Model copy = model;
  for (const auto& slot : tensor_slots(copy.weights, copy.config))
    slot.tensor->mutable_grad() = Tensor();
  return gradient;
}

// Each option alone lets the indexer's loss reach the main model, and adds to no loss.
TEST(Cuts, OffTheyLetTheIndexersLossReachTheMainModel) {
  Config config = tiny_config();
  config.index_topk = 5;
  const Model model = initialise(config, 3);
  const Tensor& of_input = model.weights.layers[1].input_layernorm;
  const Tensor& of_teacher = model.weights.layers[1].self_attn.q_b_proj.weight;
  for (const bool is_sparse : {false, true}) {
    ForwardOptions on{.form = AttentionForm::kMha, .sparse = is_sparse, .indexer_loss = true};
    ForwardOptions without_loss = on, input = on, teacher = on;
    without_loss.indexer_loss = false;
    input.detach_indexer_input = false;
    teacher.detach_teacher = false;
    const Tensor expected = gradient_of(model, of_input, without_loss);
    EXPECT_TRUE(gradient_of(model, of_input, on).equal(expected));
    EXPECT_FALSE(gradient_of(model, of_input, input).equal(expected));
    const Tensor of_queries = gradient_of(model, of_teacher, without_loss);
    EXPECT_TRUE(gradient_of(model, of_teacher, on).equal(of_queries));
    EXPECT_FALSE(gradient_of(model, of_teacher, teacher).equal(of_queries));
  }
}

}  // namespace
}  // namespace fathom::model
