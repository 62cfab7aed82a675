#include "pretrain/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/parallel.h"
#include "base/random.h"
#include "kernels/optimizer.h"

namespace fathom::pretrain {
namespace {

using model::Role;
using torch::Tensor;

Tensor random_tensor(std::vector<int64_t> shape, uint64_t stream) {
  Tensor tensor = torch::empty(shape);
  base::Random random(11, stream);
  for (int64_t i = 0; i < tensor.numel(); ++i)
    tensor.data_ptr<float>()[i] = static_cast<float>(random.normal());
  return tensor;
}

// A few weights with an optimizer over them.
struct Weights {
  explicit Weights(const OptimizerRecipe& recipe) {
    for (Tensor* tensor : {&matrix, &norm, &unused}) tensor->requires_grad_(true);
    std::vector<model::TensorSlot> slots = {
        {"matrix", {12, 20}, Role::kMatrix, false, &matrix, nullptr},
        {"norm", {20}, Role::kNorm, false, &norm, nullptr},
        {"unused", {3}, Role::kNorm, false, &unused, nullptr}};
    optimizer.emplace(slots, recipe);
  }
  double step(double learning_rate, int64_t step) {
    matrix.mutable_grad() = random_tensor({12, 20}, 100 + step);
    norm.mutable_grad() = random_tensor({20}, 200 + step);
    return optimizer->step(learning_rate, step).model;
  }

  Tensor matrix = random_tensor({12, 20}, 1), norm = random_tensor({20}, 2),
         unused = torch::ones(3);
  std::optional<Optimizer> optimizer;
};

// The published formula in double precision.
struct AdamReference {
  std::vector<double> w, m, v;
  explicit AdamReference(const Tensor& tensor)
      : w(tensor.data_ptr<float>(), tensor.data_ptr<float>() + tensor.numel()),
        m(w.size()),
        v(w.size()) {}
  void step(const Tensor& gradient, double scale, double rate, double decay, int64_t t) {
    for (size_t i = 0; i < w.size(); ++i) {
      const double g = gradient.data_ptr<float>()[i] * scale;
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.95 * v[i] + 0.05 * g * g;
      const double m_hat = m[i] / (1 - std::pow(0.9, t)), v_hat = v[i] / (1 - std::pow(0.95, t));
      w[i] -= rate * (m_hat / (std::sqrt(v_hat) + 1e-10) + decay * w[i]);
    }
  }
  void expect_equal(const Tensor& tensor) const {
    for (size_t i = 0; i < w.size(); ++i) EXPECT_NEAR(tensor.data_ptr<float>()[i], w[i], 1e-6) << i;
  }
};

double norm_of(int64_t step) {
  return std::sqrt(random_tensor({12, 20}, 100 + step).square().sum().item<double>() +
                   random_tensor({20}, 200 + step).square().sum().item<double>());
}

TEST(Optimizer, AdamWIsThePublishedFormula) {
  Weights weights({.matrices = "adamw", .weight_decay = 0.1, .clip_norm = 5});
  AdamReference matrix(weights.matrix), norm(weights.norm);
  for (int64_t step = 1; step <= 6; ++step) {
    const double before_clipping = weights.step(0.01, step);
    EXPECT_NEAR(before_clipping, norm_of(step), 1e-4);
    const double scale = std::min(1.0, 5 / norm_of(step));
    EXPECT_LT(scale, 1);
    matrix.step(random_tensor({12, 20}, 100 + step), scale, 0.01, 0.1, step);
    norm.step(random_tensor({20}, 200 + step), scale, 0.01, 0, step);  // matrices alone decay
    EXPECT_FALSE(weights.matrix.grad().defined());
  }
  matrix.expect_equal(weights.matrix);
  norm.expect_equal(weights.norm);
  EXPECT_TRUE(weights.unused.equal(torch::ones(3)));
}

// With a gradient of zero nothing but the decay moves a weight.
TEST(Optimizer, EachKindOfTensorDecaysByItsOwnRate) {
  const OptimizerRecipe recipe{.matrices = "adamw",
                               .weight_decay = 0.1,
                               .embedding_weight_decay = 0.2,
                               .router_weight_decay = 0.3,
                               .norm_weight_decay = 0.4};
  for (const auto& [role, decay] : {std::pair{Role::kMatrix, 0.1f},
                                    {Role::kEmbedding, 0.2f},
                                    {Role::kRouter, 0.3f},
                                    {Role::kNorm, 0.4f},
                                    {Role::kBias, 0.4f}}) {
    Tensor weight = torch::ones({3, 4}).requires_grad_(true);
    weight.mutable_grad() = torch::zeros({3, 4});
    Optimizer({{"w", {3, 4}, role, false, &weight, nullptr}}, recipe).step(0.5, 1);
    EXPECT_NEAR(weight.detach().max().item<float>(), 1 - 0.5f * decay, 1e-6);
    EXPECT_NEAR(weight.detach().min().item<float>(), 1 - 0.5f * decay, 1e-6);
  }
  for (const Role role : {Role::kEmbedding, Role::kRouter, Role::kNorm, Role::kBias})
    EXPECT_EQ(weight_decay_of(role, OptimizerRecipe{}), 0);
}

TEST(Optimizer, MuonsUpdateHasAdamWsSize) {
  Weights weights({.matrices = "muon", .weight_decay = 0, .clip_norm = 1e9});
  const Tensor before = weights.matrix.detach().clone();
  weights.step(0.01, 1);
  const Tensor update = (weights.matrix.detach() - before) / 0.01;
  // 12 singular values near 1 over 12 * 20 elements, times 0.2 sqrt(20): root mean square near 0.2.
  EXPECT_NEAR(std::sqrt(update.square().mean().item<double>()), 0.2, 0.04);
  // It goes down the gradient.
  EXPECT_LT((update * random_tensor({12, 20}, 101)).sum().item<double>(), 0);
}

TEST(Optimizer, StateRestoresToTheSameBits) {
  const OptimizerRecipe recipe{.matrices = "muon"};
  Weights straight(recipe), first(recipe);
  for (int64_t step = 1; step <= 5; ++step) straight.step(0.02, step);
  for (int64_t step = 1; step <= 3; ++step) first.step(0.02, step);
  Weights second(recipe);
  second.matrix.data().copy_(first.matrix);
  second.norm.data().copy_(first.norm);
  second.optimizer->restore(first.optimizer->state());
  for (int64_t step = 4; step <= 5; ++step) second.step(0.02, step);
  EXPECT_TRUE(second.matrix.equal(straight.matrix));
  EXPECT_TRUE(second.norm.equal(straight.norm));
  EXPECT_EQ(second.optimizer->state().size(), 3u);  // the norm has two moments
  EXPECT_THROW(second.optimizer->restore({{"other.first_moment", torch::zeros(2)}}), Error);
  EXPECT_THROW(second.optimizer->restore({{"norm.first_moment", torch::zeros(2)}}), Error);
}

// Each head's rows get the update that they would get as a matrix of their own.
TEST(Optimizer, MuonPerHeadIsMuonOfEachHead) {
  const OptimizerRecipe recipe{
      .matrices = "muon", .weight_decay = 0, .muon_per_head = true, .clip_norm = 1e9};
  const auto updated = [&](Tensor weight, const Tensor& gradient, int64_t num_heads) {
    weight = weight.clone().requires_grad_(true);
    weight.mutable_grad() = gradient.clone();
    model::TensorSlot slot{"w",      weight.sizes().vec(), Role::kMatrix, false, &weight, nullptr,
                           num_heads};
    Optimizer optimizer({slot}, recipe);
    optimizer.step(0.1, 1);
    return weight.detach().clone();
  };
  const Tensor weight = random_tensor({12, 20}, 1), gradient = random_tensor({12, 20}, 2);
  const Tensor together = updated(weight, gradient, 3);
  for (int64_t head = 0; head < 3; ++head) {
    const Tensor alone = updated(weight.narrow(0, 4 * head, 4), gradient.narrow(0, 4 * head, 4), 1);
    EXPECT_LT((together.narrow(0, 4 * head, 4) - alone).abs().max().item<double>(), 1e-6);
  }
  EXPECT_GT((together - updated(weight, gradient, 1)).abs().max().item<double>(), 1e-3);
}

TEST(Optimizer, BitsDoNotDependOnTheThreadCount) {
  const int threads = base::num_threads();
  std::vector<Tensor> results;
  for (int count : {1, 2, 3}) {
    base::set_num_threads(count);
    Weights weights(OptimizerRecipe{});
    for (int64_t step = 1; step <= 3; ++step) weights.step(0.02, step);
    results.push_back(torch::cat({weights.matrix.detach().flatten(), weights.norm.detach()}));
  }
  base::set_num_threads(threads);
  EXPECT_TRUE(results[0].equal(results[1]));
  EXPECT_TRUE(results[0].equal(results[2]));
}

TEST(Optimizer, FindsAValueThatIsNotFiniteWhereverItStands) {
  for (const int64_t count : {1, 7, 8, 9, 40}) {
    std::vector<float> x(count, 3e38f);
    EXPECT_TRUE(kernels::all_finite(count, x.data()));
    for (int64_t i = 0; i < count; ++i)
      for (const float bad : {HUGE_VALF, -HUGE_VALF, std::nanf("")}) {
        x[i] = bad;
        EXPECT_FALSE(kernels::all_finite(count, x.data())) << bad << " at " << i << " of " << count;
        x[i] = -3e38f;
      }
  }
}

TEST(Orthogonalise, KeepsSingularVectorsAndEvensOutValues) {
  // Rotations left and right of a diagonal: u diag(s) v^T.
  const double s[] = {3, 1, 0.3, 0.1};
  const Tensor u = std::get<0>(torch::linalg_qr(random_tensor({4, 4}, 1)));
  const Tensor v = std::get<0>(torch::linalg_qr(random_tensor({9, 4}, 2)));
  Tensor x = torch::zeros({4, 4});
  for (int i = 0; i < 4; ++i) x[i][i] = s[i];
  x = torch::matmul(torch::matmul(u, x), v.t()).contiguous();
  Tensor tall = x.t().contiguous();
  orthogonalise(4, 9, x.data_ptr<float>());
  orthogonalise(9, 4, tall.data_ptr<float>());
  EXPECT_LT((tall.t() - x).abs().max().item<double>(), 1e-4);
  const Tensor values = torch::matmul(torch::matmul(u.t(), x), v);
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const double value = values[i][j].item<double>();
      if (i == j) {
        EXPECT_GT(value, 0.6);  // the quintic's fixed interval is about 0.68 to 1.13
        EXPECT_LT(value, 1.2);
      } else {
        EXPECT_NEAR(value, 0, 1e-2);  // five products of bf16 in a row
      }
    }
}

}  // namespace
}  // namespace fathom::pretrain
