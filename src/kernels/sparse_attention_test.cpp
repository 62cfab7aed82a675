#include "kernels/sparse_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>

#include "base/parallel.h"
#include "kernels/amx_tile.h"
#include "kernels/bf16_dot.h"
#include "kernels/fp8.h"
#include "kernels/sparse_attention_amx.h"
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

// Operands that are exact in bf16, every view padded, more keys than queries, lists that begin
// within a longer array, queries without keys; against loops in double precision.
struct ExactCase {
  int64_t num_queries, num_keys;
  AttentionShape shape;
  TestMatrix q, k, v, dout, out, lse, dq, dk, dv;
  std::vector<std::vector<int32_t>> lists_T;
  TestSelection selection;  // with a query before the first
  std::vector<float> mean;

  ExactCase(int64_t num_queries, int64_t num_keys, int64_t heads, int64_t qk, int64_t v_dim)
      : num_queries(num_queries),
        num_keys(num_keys),
        shape{heads, qk, v_dim, 0.2f, Precision::kBF16},
        q(num_queries, heads * qk, 1, 1, 2),
        k(num_keys, heads * qk, 2, 2, 3),
        v(num_keys, heads * v_dim, 3, 1, 5),
        dout(num_queries, heads * v_dim, 9, 2, 1),
        out(num_queries, heads * v_dim, 4, 3, 7),
        lse(heads, num_queries, 5, 1, 4),
        dq(num_queries, heads * qk, 6, 3, 1),
        dk(num_keys, heads * qk, 7, 2, 9),
        dv(num_keys, heads * v_dim, 8, 1, 6) {
    for (TestMatrix* x : {&q, &k, &v, &dout}) round_to_bf16(x->storage, x->storage);
    base::Random random(11);
    lists_T.push_back({0, 1, 2});
    for (int64_t t = 0; t < num_queries; ++t) {
      std::set<int32_t> keys;
      const int64_t count =
          t % 9 == 4 ? 0 : 1 + static_cast<int64_t>(random.below(num_keys / 2 + 1));
      for (int64_t i = 0; i < count; ++i) keys.insert(static_cast<int32_t>(random.below(num_keys)));
      lists_T.emplace_back(keys.begin(), keys.end());
    }
    selection = TestSelection(lists_T);
    mean.assign(selection.keys.size(), -1.0f);
  }

  SelectedKeys keys_T() const { return selection.view().slice(1, num_queries); }

  void run() {
    sparse_attention_forward(shape,
                             {q.view, k.view, v.view, out.view, lse.view, keys_T(), mean.data()});
    sparse_attention_backward(shape, {q.view, k.view, v.view, out.view, dout.view, lse.view,
                                      dq.view, dk.view, dv.view, keys_T()});
  }

  double dot(const float* a, const float* b, int64_t h, int64_t dim) const {
    double sum = 0;
    for (int64_t x = h * dim; x < (h + 1) * dim; ++x) sum += static_cast<double>(a[x]) * b[x];
    return sum;
  }
};

// What a case should have given.
struct Expected {
  TestMatrix out, lse, dq, dk, dv;
  std::vector<float> mean;

  explicit Expected(const ExactCase& c)
      : out(c.num_queries, c.out.view.cols, 0),
        lse(c.lse.view.rows, c.num_queries, 0),
        dq(c.num_queries, c.dq.view.cols, 0),
        dk(c.num_keys, c.dk.view.cols, 0),
        dv(c.num_keys, c.dv.view.cols, 0),
        mean(c.mean.size(), 0.0f) {
    for (TestMatrix* x : {&out, &lse, &dq, &dk, &dv})
      std::fill(x->storage.begin(), x->storage.end(), 0.0f);
    for (int64_t h = 0; h < c.shape.num_heads; ++h)
      for (int64_t t = 0; t < c.num_queries; ++t) add_query(c, h, t);
  }

  void add_query(const ExactCase& c, int64_t h, int64_t t) {
    const auto keys = c.keys_T()[t];
    const int64_t qk = c.shape.qk_dim, v_dim = c.shape.v_dim;
    std::vector<double> p, dp;
    double maximum = -INFINITY, sum = 0, delta = 0;
    for (const int32_t s : keys) {
      p.push_back(c.shape.scale * c.dot(c.q.view[t], c.k.view[s], h, qk));
      dp.push_back(c.dot(c.dout.view[t], c.v.view[s], h, v_dim));
      maximum = std::max(maximum, p.back());
    }
    for (double& x : p) sum += x = std::exp(x - maximum);
    lse.view[h][t] = static_cast<float>(maximum + std::log(sum));
    for (size_t i = 0; i < p.size(); ++i) delta += (p[i] /= sum) * dp[i];
    for (size_t i = 0; i < p.size(); ++i) {
      const double ds = p[i] * (dp[i] - delta) * c.shape.scale;
      mean[keys.data() - c.selection.keys.data() + i] +=
          static_cast<float>(p[i] / static_cast<double>(c.shape.num_heads));
      for (int64_t x = h * qk; x < (h + 1) * qk; ++x) {
        dq.view[t][x] += static_cast<float>(ds * c.k.view[keys[i]][x]);
        dk.view[keys[i]][x] += static_cast<float>(ds * c.q.view[t][x]);
      }
      for (int64_t x = h * v_dim; x < (h + 1) * v_dim; ++x) {
        out.view[t][x] += static_cast<float>(p[i] * c.v.view[keys[i]][x]);
        dv.view[keys[i]][x] += static_cast<float>(p[i] * c.dout.view[t][x]);
      }
    }
  }
};

void expect_equal(const ExactCase& c, const Expected& expected) {
  for (int64_t h = 0; h < c.shape.num_heads; ++h)
    for (int64_t t = 0; t < c.num_queries; ++t) {
      if (c.keys_T()[t].empty())
        EXPECT_EQ(c.lse.view[h][t], -INFINITY);
      else
        EXPECT_NEAR(c.lse.view[h][t], expected.lse.view[h][t],
                    1e-5 * (1 + std::abs(expected.lse.view[h][t])));
    }
  EXPECT_LE(relative_error(c.out.view, expected.out.view), 5e-3);
  EXPECT_LE(relative_error(c.dq.view, expected.dq.view), 6e-3);
  EXPECT_LE(relative_error(c.dk.view, expected.dk.view), 6e-3);
  EXPECT_LE(relative_error(c.dv.view, expected.dv.view), 5e-3);
  for (size_t i = 3; i < c.mean.size(); ++i)
    ASSERT_NEAR(c.mean[i], expected.mean[i], 1e-5 * (1 + expected.mean[i])) << i;
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(c.mean[i], -1.0f);  // before the slice
}

TEST(SparseAttention, BF16FormsEqualLoopsOverExactOperands) {
  for (const auto& [queries, keys, heads, qk, v_dim] :
       {std::tuple(9, 12, 1, 1, 1), std::tuple(33, 40, 3, 17, 16), std::tuple(70, 300, 2, 48, 32),
        std::tuple(95, 131, 4, 33, 65)}) {
    ExactCase c(queries, keys, heads, qk, v_dim);
    const std::vector<float> dk_before = c.dk.storage;
    c.run();
    expect_equal(c, Expected(c));
    for (int64_t s = 0; s + 1 < keys; ++s)  // nothing behind a row
      for (int64_t x = c.dk.view.cols; x < c.dk.view.stride; ++x)
        ASSERT_EQ(c.dk.view[s][x], dk_before[c.dk.view[s] + x - c.dk.storage.data()]);
  }
}

// Keys that a query did not select count for nothing, however high it would score them: the tiles
// multiply them all the same.
TEST(SparseAttention, OthersKeysDoNotCount) {
  ExactCase c(40, 80, 2, 32, 16);
  c.lists_T.assign(1, {0, 1, 2});
  for (int32_t t = 0; t < 40; ++t)
    c.lists_T.push_back(t % 2 ? std::vector<int32_t>{t, t + 1, 79} : std::vector<int32_t>{60, 61});
  c.selection = TestSelection(c.lists_T);
  c.mean.assign(c.selection.keys.size(), -1.0f);
  for (int64_t x = 0; x < c.k.view.cols; ++x) {
    for (int64_t t = 1; t < 40; t += 2) c.q.view[t][x] = 1.0f;
    for (const int64_t s : {60, 61}) c.k.view[s][x] = 64.0f;  // 400 above the odd queries' own
  }
  c.run();
  expect_equal(c, Expected(c));
}

// One key has all the weight, whatever its score: dv is dout.
TEST(SparseAttention, HugeScoresStayProbabilities) {
  for (const float size : {1e5f, 1e6f, 3e9f, 1e20f}) {
    ExactCase c(40, 40, 2, 32, 16);
    c.lists_T.assign(1, {0, 1, 2});
    for (int32_t t = 0; t < 40; ++t) c.lists_T.push_back({t});
    c.selection = TestSelection(c.lists_T);
    c.mean.assign(c.selection.keys.size(), -1.0f);
    for (int64_t t = 0; t < 40; ++t)
      for (int64_t x = 0; x < c.q.view.cols; ++x) c.q.view[t][x] *= size;
    c.run();
    EXPECT_LE(max_difference(c.dv.view, c.dout.view), 0) << size;
    EXPECT_TRUE(std::ranges::all_of(c.dk.storage, [](float x) { return std::isfinite(x); }));
    for (int64_t t = 0; t < 40; ++t)
      for (int64_t x = 0; x < c.dq.view.cols; ++x) ASSERT_NEAR(c.dq.view[t][x], 0, 1e-6) << size;
  }
}

TEST(SparseAttention, MeanProbabilitiesAreTheHeadsMean) {
  const auto lists_T = random_selection(WideCase::kTokens, 2);
  const TestSelection selection(lists_T);
  for (const auto& [qk, v_dim] : kWideHeads) {
    WideCase c(qk, v_dim);
    c.shape.precision = Precision::kBF16;
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

TEST(SparseAttention, TakesTilesWhereThereAreAny) {
  if (!has_amx()) GTEST_SKIP() << "the processor has no AMX";
  ExactCase c(70, 90, 2, 20, 17), tiled(70, 90, 2, 20, 17);
  c.run();
  sparse_attention_forward_amx(
      tiled.shape, {tiled.q.view, tiled.k.view, tiled.v.view, tiled.out.view, tiled.lse.view,
                    tiled.keys_T(), tiled.mean.data()});
  sparse_attention_backward_amx(
      tiled.shape, {tiled.q.view, tiled.k.view, tiled.v.view, tiled.out.view, tiled.dout.view,
                    tiled.lse.view, tiled.dq.view, tiled.dk.view, tiled.dv.view, tiled.keys_T()});
  EXPECT_EQ(max_difference(c.out.view, tiled.out.view), 0);
  EXPECT_EQ(max_difference(c.dk.view, tiled.dk.view), 0);
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
