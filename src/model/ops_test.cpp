// Gradients of every op against central differences of a double-precision reference.
#include "model/ops.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>

#include "model/attention_ops.h"
#include "model/loss.h"
#include "model/test_config.h"

namespace fathom::model {
namespace {

using torch::Tensor;
using TensorFunction = std::function<Tensor(const std::vector<Tensor>&)>;

Tensor normal(std::vector<int64_t> shape, int seed) {
  torch::manual_seed(seed);
  return torch::randn(shape);
}

// Compares `op` (f32, hand-written gradient) with `reference` (double, composed of LibTorch's ops):
// values, and the gradient of sum(output * cotangent) for every input by central differences of the
// reference. Up to 40 elements of each input are tried.
void expect_gradients(const TensorFunction& op, const TensorFunction& reference,
                      const std::vector<Tensor>& inputs, double tolerance = 1e-4) {
  std::vector<Tensor> leaves, exact;
  for (const Tensor& input : inputs) {
    leaves.push_back(input.clone().set_requires_grad(true));
    exact.push_back(input.to(torch::kDouble));
  }
  const Tensor out = op(leaves);
  const Tensor expected = reference(exact);
  const double scale = std::max(1.0, expected.abs().max().item<double>());
  EXPECT_LE((out.to(torch::kDouble) - expected).abs().max().item<double>(), 2e-5 * scale);
  torch::manual_seed(99);
  const Tensor cotangent = torch::randn_like(out);
  out.backward(cotangent);
  const auto objective = [&] {
    return (reference(exact) * cotangent.to(torch::kDouble)).sum().item<double>();
  };
  for (size_t i = 0; i < inputs.size(); ++i) {
    ASSERT_TRUE(leaves[i].grad().defined()) << "input " << i;
    const Tensor gradient = leaves[i].grad().to(torch::kDouble).flatten();
    const double gradient_scale = std::max(1.0, gradient.abs().max().item<double>());
    Tensor flat = exact[i].view(-1);
    for (int64_t j = 0; j < flat.numel(); j += std::max<int64_t>(1, flat.numel() / 40)) {
      const double original = flat[j].item<double>(), step = 1e-5;
      flat[j] = original + step;
      const double above = objective();
      flat[j] = original - step;
      const double below = objective();
      flat[j] = original;
      EXPECT_NEAR(gradient[j].item<double>(), (above - below) / (2 * step),
                  tolerance * gradient_scale)
          << "input " << i << " element " << j;
    }
  }
}

TEST(OpGradients, Linear) {
  expect_gradients(
      [](const auto& in) {
        return ops::linear(in[0], {in[1], {}}, {});
      },
      [](const auto& in) { return in[0].matmul(in[1].t()); },
      {normal({9, 21}, 1), normal({17, 21}, 2)});
}

TEST(OpGradients, LinearInBf16RoundsBothOperandsAndTheCotangent) {
  const auto round = [](const Tensor& x) { return x.to(torch::kBFloat16).to(torch::kFloat32); };
  Tensor x = normal({5, 40}, 1).set_requires_grad(true);
  Tensor w = normal({7, 40}, 2).set_requires_grad(true);
  const Tensor cotangent = normal({5, 7}, 3);
  const Tensor y = ops::linear(x, {w, {}}, {.bf16_matmuls = true});
  y.backward(cotangent);
  EXPECT_TRUE(y.allclose(round(x).matmul(round(w).t()), 1e-5, 1e-5));
  EXPECT_TRUE(x.grad().allclose(round(cotangent).matmul(round(w)), 1e-5, 1e-5));
  EXPECT_TRUE(w.grad().allclose(round(cotangent).t().matmul(round(x)), 1e-5, 1e-5));
}

TEST(OpGradients, RmsNorm) {
  expect_gradients(
      [](const auto& in) { return ops::rms_norm(in[0], in[1], 1e-6); },
      [](const auto& in) { return in[0] * (in[0].square().mean(1, true) + 1e-6).rsqrt() * in[1]; },
      {normal({300, 13}, 1), normal({13}, 2)});
}

TEST(OpGradients, Swiglu) {
  expect_gradients([](const auto& in) { return ops::swiglu(in[0], in[1]); },
                   [](const auto& in) { return in[0] * in[0].sigmoid() * in[1]; },
                   {normal({6, 19}, 1), normal({6, 19}, 2)});
}

TEST(OpGradients, Sigmoid) {
  expect_gradients([](const auto& in) { return ops::sigmoid(in[0]); },
                   [](const auto& in) { return in[0].sigmoid(); }, {normal({6, 11}, 1)});
}

TEST(OpGradients, Softmax) {
  expect_gradients([](const auto& in) { return ops::softmax(in[0]); },
                   [](const auto& in) { return in[0].softmax(1); }, {3 * normal({6, 11}, 1)});
}

// Both layouts, as a rotation of complex numbers.
Tensor rope_reference(const Tensor& x, const Tensor& angle, const kernels::Rope& o) {
  Tensor heads = x.view({x.size(0), o.num_heads, o.head_dim}).clone();
  Tensor part = heads.narrow(2, o.rope_begin, o.rope_dim);
  const int64_t half = o.rope_dim / 2;
  const Tensor pairs = o.interleaved
                           ? part.reshape({x.size(0), o.num_heads, half, 2})
                           : part.reshape({x.size(0), o.num_heads, 2, half}).transpose(2, 3);
  const Tensor a = pairs.select(3, 0), b = pairs.select(3, 1);
  const Tensor cos = angle.cos().unsqueeze(1), sin = angle.sin().unsqueeze(1);
  Tensor turned = torch::stack({a * cos - b * sin, a * sin + b * cos}, 3);
  if (!o.interleaved) turned = turned.transpose(2, 3);
  const Tensor before = heads.narrow(2, 0, o.rope_begin);
  const int64_t end = o.rope_begin + o.rope_dim;
  const Tensor after = heads.narrow(2, end, o.head_dim - end);
  return torch::cat({before, turned.reshape_as(part), after}, 2).view_as(x);
}

TEST(OpGradients, RopeInBothLayouts) {
  const Tensor angle = normal({7, 4}, 3);
  for (bool interleaved : {true, false}) {
    const kernels::Rope options{3, 13, 4, 8, interleaved};
    expect_gradients(
        [&](const auto& in) { return ops::rope(in[0], angle.cos(), angle.sin(), options); },
        [&](const auto& in) { return rope_reference(in[0], angle.to(torch::kDouble), options); },
        {normal({7, 39}, 1)});
  }
}

TEST(OpGradients, CausalAttentionKeepsSegmentsApart) {
  const kernels::AttentionShape shape{2, 6, 5, 0.4f};
  const std::vector<int64_t> lengths = {9, 1, 14};
  const auto reference = [&](const std::vector<Tensor>& in) {
    std::vector<Tensor> outputs;
    int64_t begin = 0;
    for (int64_t length : lengths) {
      const auto heads = [&](const Tensor& x, int64_t dim) {
        return x.narrow(0, begin, length).view({length, 2, dim}).transpose(0, 1);
      };
      const Tensor scores = heads(in[0], 6).matmul(heads(in[1], 6).transpose(1, 2)) * 0.4;
      const Tensor future = torch::ones({length, length}, torch::kBool).triu(1);
      const Tensor p = scores.masked_fill(future, -INFINITY).softmax(2);
      outputs.push_back(p.matmul(heads(in[2], 5)).transpose(0, 1).reshape({length, 10}));
      begin += length;
    }
    return torch::cat(outputs);
  };
  expect_gradients(
      [&](const auto& in) {
        return ops::attend(in[0], in[1], in[2], shape, ops::segment_rows(lengths)).out_NHV;
      },
      reference, {normal({24, 12}, 1), normal({24, 12}, 2), normal({24, 10}, 3)});
}

TEST(OpGradients, ExpertGatherAndCombine) {
  const Tensor experts = torch::tensor({{0, 2}, {1, 2}, {0, 1}, {2, 3}, {0, 3}}, torch::kLong);
  const auto plan = ops::plan_experts(experts, 5);
  EXPECT_EQ(plan.counts_E, (std::vector<int64_t>{3, 2, 3, 2, 0}));
  // Each slot is scaled by its own factor, so that a wrong permutation shows.
  const Tensor factor = torch::arange(1, 11, torch::kFloat32).unsqueeze(1);
  expect_gradients(
      [&](const auto& in) {
        return ops::combine_from_experts(ops::gather_to_experts(in[0], plan) * factor, in[1], plan);
      },
      [&](const auto& in) {
        Tensor out = torch::zeros_like(in[0]);
        for (int64_t n = 0; n < 5; ++n)
          for (int64_t j = 0; j < 2; ++j) {
            const auto slot = plan.slot_of_pair_NK[n][j].template item<int64_t>();
            out[n] += in[1][n][j] * in[0][n] * static_cast<double>(slot + 1);
          }
        return out;
      },
      {normal({5, 6}, 1), normal({5, 2}, 2)});
}

TEST(OpGradients, ExpertWeights) {
  const Tensor index = torch::tensor({0, 3, 4, 1, 2, 3, 0, 1, 4}, torch::kLong).view({3, 3});
  for (const bool normalises : {false, true}) {
    const auto op = [&](const auto& in) {
      return ops::expert_weights(in[0], index, normalises, 2.5);
    };
    const auto reference = [&](const auto& in) {
      const Tensor chosen = in[0].gather(1, index);
      return 2.5 * (normalises ? chosen / chosen.sum(1, true) : chosen);
    };
    const Tensor scores = torch::sigmoid(normal({3, 5}, 1));
    expect_gradients(op, reference, {scores});
    const torch::NoGradGuard no_grad;
    EXPECT_TRUE(op(std::vector{scores}).allclose(reference(std::vector{scores}), 1e-6, 1e-7));
  }
}

TEST(Ops, RopeTurnsInPlaceOnlyWhatNobodyElseHolds) {
  const torch::NoGradGuard no_grad;
  const Tensor x = normal({4, 24}, 1), cos = normal({4, 4}, 2), sin = normal({4, 4}, 3);
  const Tensor before = x.clone();
  const kernels::Rope options{2, 12, 4, 8};
  const Tensor turned = ops::rope(x, cos, sin, options);
  EXPECT_TRUE(x.equal(before));
  EXPECT_TRUE(ops::rope(x.view({8, 12}).view({4, 24}), cos, sin, options).equal(turned));
  EXPECT_TRUE(x.equal(before)) << "a view of x is held by x";
  Tensor own = x.clone();
  const float* const data = own.data_ptr<float>();
  const Tensor moved = ops::rope(std::move(own), cos, sin, options);
  EXPECT_EQ(moved.data_ptr<float>(), data);
  EXPECT_TRUE(moved.equal(turned));
}

TEST(Ops, AGroupOfLinearsHasTheBitsOfEach) {
  const Tensor x = normal({5, 40}, 1);
  const Linear w{normal({7, 40}, 2).to(torch::kBFloat16), {}};
  const Linear other{normal({9, 40}, 3).to(torch::kBFloat16), {}}, f32{normal({3, 40}, 4), {}};
  const Linear other_f32{normal({6, 40}, 5), {}};
  for (const bool bf16 : {false, true})
    for (const Linear* last : {&other, &f32}) {
      const torch::NoGradGuard no_grad;
      const auto together = ops::linear_group(x, {&w, last}, {.bf16_matmuls = bf16});
      EXPECT_TRUE(together[0].equal(ops::linear(x, w, {.bf16_matmuls = bf16})));
      EXPECT_TRUE(together[1].equal(ops::linear(x, *last, {.bf16_matmuls = bf16})));
      const auto both_f32 = ops::linear_group(x, {&f32, &other_f32}, {.bf16_matmuls = bf16});
      EXPECT_TRUE(both_f32[1].equal(ops::linear(x, other_f32, {.bf16_matmuls = bf16})));
    }
}

TEST(OpGradients, LinearCrossEntropyOverSeveralBlocks) {
  const int64_t rows = 700, vocab = 23;
  Tensor targets = torch::arange(rows, torch::kLong) % vocab;
  targets[3] = -1;
  expect_gradients(
      [&](const auto& in) {
        return ops::linear_cross_entropy(in[0], {in[1], {}}, targets, {});
      },
      [&](const auto& in) {
        const Tensor log_p = in[0].matmul(in[1].t()).log_softmax(1);
        const Tensor valid = targets >= 0;
        const Tensor chosen = log_p.gather(1, targets.clamp_min(0).unsqueeze(1)).squeeze(1);
        return -(chosen * valid).sum() / valid.sum();
      },
      {normal({rows, 11}, 1), normal({vocab, 11}, 2)});
}

TrainingBatch tiny_batch() {
  torch::manual_seed(5);
  return {torch::randint(50, {24}, torch::kLong), torch::randint(50, {24}, torch::kLong), {10, 14}};
}

// The whole loss: every parameter's gradient against central differences of the f32 loss itself.
// Routing is discrete; at this size no step of 1e-3 flips it.
TEST(LossGradients, EveryParameterOfATinyModel) {
  Model model = initialise(tiny_config(), 3);
  const TrainingBatch batch = tiny_batch();
  const LossOptions options{.mtp_weight = 0.3,
                            .balance_weight = 0,
                            .forward = {.form = AttentionForm::kMha, .sparse = false}};
  language_model_loss(model, batch, options).total.backward();
  const torch::NoGradGuard no_grad;
  int num_checked = 0;
  for (const TensorSlot& slot : tensor_slots(model.weights, model.config)) {
    const bool is_trained =
        slot.role != Role::kExpertBias && slot.name.find("indexer") == std::string::npos;
    EXPECT_EQ(slot.tensor->grad().defined(), is_trained) << slot.name;
    if (!is_trained) continue;
    Tensor flat = slot.tensor->view(-1);
    const Tensor gradient = slot.tensor->grad().flatten();
    // The element with the greatest gradient: rounding noise of the loss is some 1e-6 / step.
    const int64_t j = gradient.abs().argmax().item<int64_t>();
    const float original = flat[j].item<float>(), step = 4e-3f;
    flat[j] = original + step;
    const double above = language_model_loss(model, batch, options).total.item<double>();
    flat[j] = original - step;
    const double below = language_model_loss(model, batch, options).total.item<double>();
    flat[j] = original;
    const double expected = (above - below) / (2 * step);
    EXPECT_NEAR(gradient[j].item<double>(), expected, 3e-4 + 0.02 * std::abs(expected))
        << slot.name;
    ++num_checked;
  }
  EXPECT_GT(num_checked, 60);
}

TEST(Loss, PackedSegmentsEqualSeparateOnes) {
  const Model model = initialise(tiny_config(), 3);
  const torch::NoGradGuard no_grad;
  const TrainingBatch both = tiny_batch();
  const LossOptions options{.mtp_weight = 0,
                            .balance_weight = 0,
                            .forward = {.form = AttentionForm::kMha, .sparse = false}};
  const auto part = [&](int64_t begin, int64_t length) {
    return language_model_loss(model,
                               {both.tokens_N.narrow(0, begin, length),
                                both.targets_N.narrow(0, begin, length),
                                {length}},
                               options)
        .main;
  };
  EXPECT_NEAR(language_model_loss(model, both, options).main,
              (10 * part(0, 10) + 14 * part(10, 14)) / 24, 1e-5);
}

TEST(Loss, TrainingAndServingGiveTheSameLogits) {
  const Model model = initialise(tiny_config(), 3);
  const torch::NoGradGuard no_grad;
  const Tensor tokens = tiny_batch().tokens_N;
  const Segment plain{24, 0, nullptr};
  const ForwardOptions training{.form = AttentionForm::kMha, .sparse = false};
  const Tensor trained = forward(model, tokens, {&plain, 1}, training);
  KvCache cache(model.config);
  const Segment cached{24, 0, &cache};
  const Tensor served = forward(model, tokens, {&cached, 1}, {});
  EXPECT_LE((trained - served).abs().max().item<double>(), 2e-5);
}

TEST(Loss, AFutureTokenChangesNothingBeforeIt) {
  const Model model = initialise(tiny_config(), 3);
  const torch::NoGradGuard no_grad;
  const Segment segment{24, 0, nullptr};
  const ForwardOptions options{.form = AttentionForm::kMha, .sparse = false};
  Tensor tokens = tiny_batch().tokens_N.clone();
  const Tensor before = forward(model, tokens, {&segment, 1}, options);
  tokens[20] = (tokens[20].item<int64_t>() + 1) % 50;
  const Tensor after = forward(model, tokens, {&segment, 1}, options);
  EXPECT_TRUE(before.narrow(0, 0, 20).equal(after.narrow(0, 0, 20)));
  EXPECT_FALSE(before[20].equal(after[20]));
}

}  // namespace
}  // namespace fathom::model
