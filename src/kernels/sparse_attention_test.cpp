#include "kernels/sparse_attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/parallel.h"
#include "kernels/bf16_dot.h"
#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kTokens = 75, kHeads = 3, kQk = 20, kV = 17;
const AttentionShape kShape{kHeads, kQk, kV, 0.3f};

// One in `rarity` of the keys up to each query, itself always among them; the first query's list is
// empty.
std::vector<std::vector<int32_t>> random_selection(int64_t tokens, uint64_t rarity = 3) {
  base::Random random(7);
  std::vector<std::vector<int32_t>> keys_T(tokens);
  for (int32_t t = 1; t < tokens; ++t) {
    for (int32_t s = 0; s < t; ++s)
      if (random.below(rarity) == 0) keys_T[t].push_back(s);
    keys_T[t].push_back(t);
  }
  return keys_T;
}

std::vector<uint8_t> as_mask(const std::vector<std::vector<int32_t>>& keys_T) {
  std::vector<uint8_t> allowed(keys_T.size() * keys_T.size());
  for (size_t t = 0; t < keys_T.size(); ++t)
    for (int32_t s : keys_T[t]) allowed[t * keys_T.size() + s] = 1;
  return allowed;
}

struct Case {
  TestMatrix q{kTokens, kHeads*kQk, 1, 1, 2}, k{kTokens, kHeads*kQk, 2}, v{kTokens, kHeads*kV, 3},
      out{kTokens, kHeads*kV, 4}, lse{kHeads, kTokens, 5};
};

double objective(Case& c, const std::vector<uint8_t>& allowed, const TestMatrix& cotangent) {
  reference::attention(
      kShape, {c.q.view, c.k.view, c.v.view, c.out.view, c.lse.view, {allowed.data(), kTokens}});
  double sum = 0;
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t i = 0; i < kHeads * kV; ++i)
      sum += static_cast<double>(c.out.view[t][i]) * cotangent.view[t][i];
  return sum;
}

TEST(DsaTraining, T7GatheredAttentionEqualsTheDenseMask) {
  const auto lists_T = random_selection(kTokens);
  const TestSelection selection(lists_T);
  const auto allowed = as_mask(lists_T);
  Case fast, slow;
  sparse_attention_forward(kShape, {fast.q.view, fast.k.view, fast.v.view, fast.out.view,
                                    fast.lse.view, selection.view()});
  reference::attention(kShape, {slow.q.view,
                                slow.k.view,
                                slow.v.view,
                                slow.out.view,
                                slow.lse.view,
                                {allowed.data(), kTokens}});
  EXPECT_LE(max_difference(fast.out.view, slow.out.view), 2e-5);
  for (int64_t h = 0; h < kHeads; ++h) {
    EXPECT_EQ(fast.lse.view[h][0], -INFINITY);
    for (int64_t t = 1; t < kTokens; ++t)
      EXPECT_NEAR(fast.lse.view[h][t], slow.lse.view[h][t], 2e-5);
  }
}

TEST(SparseAttention, GradientsEqualCentralDifferencesOfTheReference) {
  const auto lists_T = random_selection(kTokens);
  const TestSelection selection(lists_T);
  const auto allowed = as_mask(lists_T);
  Case c;
  const TestMatrix cotangent(kTokens, kHeads * kV, 9);
  sparse_attention_forward(
      kShape, {c.q.view, c.k.view, c.v.view, c.out.view, c.lse.view, selection.view()});
  TestMatrix dq(kTokens, kHeads * kQk, 6), dk(kTokens, kHeads * kQk, 7),
      dv(kTokens, kHeads * kV, 8);
  sparse_attention_backward(kShape, {c.q.view, c.k.view, c.v.view, c.out.view, cotangent.view,
                                     c.lse.view, dq.view, dk.view, dv.view, selection.view()});
  const auto expect_gradient = [&](TestMatrix& x, const TestMatrix& gradient) {
    for (int64_t t = 0; t < kTokens; t += 7)
      for (int64_t i = t % 5; i < x.view.cols; i += 11) {
        float& element = x.view[t][i];
        const float original = element, step = 1e-2f;
        element = original + step;
        const double above = objective(c, allowed, cotangent);
        element = original - step;
        const double below = objective(c, allowed, cotangent);
        element = original;
        EXPECT_NEAR(gradient.view[t][i], (above - below) / (2 * step), 3e-3) << t << " " << i;
      }
  };
  expect_gradient(c.q, dq);
  expect_gradient(c.k, dk);
  expect_gradient(c.v, dv);
}

// More queries than a block, a last group that is not full, more keys than a chunk; heads of one,
// two and three cache lines.
struct WideCase {
  static constexpr int64_t kTokens = 299, kHeads = 5;
  AttentionShape shape;
  TestMatrix q, k, v, dout, out, lse, dq, dk, dv;

  WideCase(int64_t qk, int64_t v_dim)
      : shape{kHeads, qk, v_dim, 0.1f},
        q(kTokens, kHeads * qk, 1, 1, 2),
        k(kTokens, kHeads * qk, 2),
        v(kTokens, kHeads * v_dim, 3),
        dout(kTokens, kHeads * v_dim, 9, 2, 1),
        out(kTokens, kHeads * v_dim, 4),
        lse(kHeads, kTokens, 5),
        dq(kTokens, kHeads * qk, 6, 3, 1),
        dk(kTokens, kHeads * qk, 7),
        dv(kTokens, kHeads * v_dim, 8) {}

  void run(Precision precision, SelectedKeys keys_T) {
    shape.precision = precision;
    sparse_attention_forward(shape, {q.view, k.view, v.view, out.view, lse.view, keys_T});
    sparse_attention_backward(shape, {q.view, k.view, v.view, out.view, dout.view, lse.view,
                                      dq.view, dk.view, dv.view, keys_T});
  }
};

constexpr std::pair<int64_t, int64_t> kWideHeads[] = {{70, 17}, {48, 32}, {20, 64}};

TEST(SparseAttention, BF16ProductsStayWithinTheirRounding) {
  const TestSelection selection(random_selection(WideCase::kTokens, 2));
  EXPECT_GT(selection.view()[WideCase::kTokens - 1].size(), 128);
  for (const auto& [qk, v_dim] : kWideHeads) {
    WideCase exact(qk, v_dim), rounded(qk, v_dim);
    exact.run(Precision::kF32, selection.view());
    rounded.run(Precision::kBF16, selection.view());
    for (int64_t h = 0; h < WideCase::kHeads; ++h)
      for (int64_t t = 1; t < WideCase::kTokens; ++t)
        EXPECT_NEAR(rounded.lse.view[h][t], exact.lse.view[h][t], 1e-2);
    EXPECT_LE(relative_error(rounded.out.view, exact.out.view), 6e-3);
    EXPECT_LE(relative_error(rounded.dq.view, exact.dq.view), 1e-2);
    EXPECT_LE(relative_error(rounded.dk.view, exact.dk.view), 1e-2);
    EXPECT_LE(relative_error(rounded.dv.view, exact.dv.view), 1e-2);
    for (int64_t i = 0; i < rounded.dq.view.cols; ++i) EXPECT_EQ(rounded.dq.view[0][i], 0);
  }
}

TEST(SparseAttention, MeanProbabilitiesAreTheHeadsMean) {
  const auto lists_T = random_selection(WideCase::kTokens, 2);
  const TestSelection selection(lists_T);
  for (const auto& [qk, v_dim] : kWideHeads) {
    WideCase c(qk, v_dim);
    c.shape.precision = Precision::kBF16;
    if (!takes_bf16_dot(c.shape)) GTEST_SKIP() << "the processor has no bf16 dot products";
    std::vector<float> mean(selection.keys.size());
    sparse_attention_forward(c.shape, {c.q.view, c.k.view, c.v.view, c.out.view, c.lse.view,
                                       selection.view(), mean.data()});
    double difference = 0, size = 0;
    for (int64_t t = 0; t < WideCase::kTokens; ++t)
      for (size_t i = 0; i < lists_T[t].size(); ++i) {
        double expected = 0;
        for (int64_t h = 0; h < WideCase::kHeads; ++h) {
          double dot = 0;
          for (int64_t d = h * qk; d < (h + 1) * qk; ++d)
            dot += static_cast<double>(c.q.view[t][d]) * c.k.view[lists_T[t][i]][d];
          expected += std::exp(c.shape.scale * dot - c.lse.view[h][t]) / WideCase::kHeads;
        }
        const double error = mean[selection.begins[t] + static_cast<int64_t>(i)] - expected;
        difference += error * error;
        size += expected * expected;
      }
    EXPECT_LE(std::sqrt(difference / size), 1e-2);
  }
}

TEST(SparseAttention, BitsDoNotDependOnTheThreads) {
  const int before = base::num_threads();
  const TestSelection selection(random_selection(WideCase::kTokens, 2));
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    WideCase one(48, 32), two(48, 32);
    base::set_num_threads(1);
    one.run(precision, selection.view());
    base::set_num_threads(2);
    two.run(precision, selection.view());
    for (const auto& [a, b] : {std::pair(&one.out, &two.out),
                               {&one.lse, &two.lse},
                               {&one.dq, &two.dq},
                               {&one.dk, &two.dk},
                               {&one.dv, &two.dv}})
      EXPECT_EQ(max_difference(a->view, b->view), 0);
  }
  base::set_num_threads(before);
}

}  // namespace
}  // namespace fathom::kernels
