#include "kernels/indexer_loss.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <tuple>

#include "base/parallel.h"
#include "kernels/fp8.h"
#include "kernels/sparse_attention.h"
#include "kernels/test_data.h"
#include "kernels/top_k.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kHeads = 3, kQk = 20, kIndexHeads = 5, kDim = 19;
const AttentionShape kShape{kHeads, kQk, 1, 0.3f};

struct Case {
  int64_t tokens;
  TestMatrix q, k, v, out, lse, q_TJX, w_TJ, k_TX, dq, dw, dk;
  std::vector<std::vector<int32_t>> lists_T;  // empty: dense
  TestSelection selection;

  explicit Case(int64_t tokens, int64_t dim = kDim)
      : tokens(tokens),
        q(tokens, kHeads * kQk, 1, 1, 2),
        k(tokens, kHeads * kQk, 2),
        v(tokens, kHeads, 3),
        out(tokens, kHeads, 4),
        lse(kHeads, tokens, 5),
        q_TJX(tokens, kIndexHeads * dim, 6, 3, 1),
        w_TJ(tokens, kIndexHeads, 7),
        k_TX(tokens, dim, 8),
        dq(tokens, kIndexHeads * dim, 9),
        dw(tokens, kIndexHeads, 10),
        dk(tokens, dim, 11) {}

  // As the sparse stage: the k best of some scores.
  void select(int64_t count) {
    lists_T.resize(tokens);
    const TestMatrix scores(tokens, tokens, 12);
    for (int64_t t = 0; t < tokens; ++t)
      top_k({scores.view[t], static_cast<size_t>(t + 1)}, count, lists_T[t]);
  }

  IndexerLossInput input() {
    selection = TestSelection(lists_T);
    const SelectedKeys keys_T = selection.view();
    if (keys_T.empty())
      attention_forward(kShape, {q.view, k.view, v.view, out.view, lse.view, {}}, 0, kHeads);
    else
      sparse_attention_forward(kShape, {q.view, k.view, v.view, out.view, lse.view, keys_T});
    return {kShape, q.view, k.view, lse.view, q_TJX.view, w_TJ.view, k_TX.view, keys_T, nullptr, 0};
  }
  IndexerLossOutput output() { return {0, 0, dq.view, dw.view, dk.view}; }
};

// The kernel goes through blocks of 64 queries, the reference through the whole sequence.
TEST(DsaTraining, T10TheChunkedTargetEqualsTheUnchunked) {
  for (int64_t tokens : {1, 2, 63, 64, 65, 200}) {
    for (int64_t selected : {0, 1, 8, 300}) {
      Case fast(tokens), slow(tokens);
      if (selected > 0) {
        fast.select(selected);
        slow.select(selected);
      }
      auto out = fast.output(), expected = slow.output();
      indexer_loss(fast.input(), out);
      reference::indexer_loss(slow.input(), expected);
      EXPECT_NEAR(out.loss, expected.loss, 1e-5 * (1 + expected.loss)) << tokens << " " << selected;
      EXPECT_GE(out.loss, -1e-4);
      EXPECT_LE(max_difference(fast.dq.view, slow.dq.view), 2e-5) << tokens << " " << selected;
      EXPECT_LE(max_difference(fast.dw.view, slow.dw.view), 1e-4) << tokens << " " << selected;
      EXPECT_LE(max_difference(fast.dk.view, slow.dk.view), 2e-4) << tokens << " " << selected;
    }
  }
}

// The hand-written gradient against central differences of the double-precision loss.
TEST(DsaTraining, T1GradientsEqualCentralDifferencesOfTheReference) {
  for (auto [tokens, selected] :
       {std::pair<int64_t, int64_t>{16, 8}, {32, 16}, {64, 32}, {40, 0}}) {
    Case c(tokens);
    if (selected > 0) c.select(selected);
    auto out = c.output();
    indexer_loss(c.input(), out);
    Case scratch(tokens);
    const auto expect_gradient = [&](TestMatrix& x, const TestMatrix& gradient) {
      for (int64_t t = 0; t < tokens; t += 5)
        for (int64_t i = t % 3; i < x.view.cols; i += 7) {
          auto ignored = scratch.output();
          float& element = x.view[t][i];
          const float original = element, step = 1e-3f;
          element = original + step;
          reference::indexer_loss(c.input(), ignored);
          const double above = ignored.loss;
          element = original - step;
          reference::indexer_loss(c.input(), ignored);
          element = original;
          const double difference = (above - ignored.loss) / (2 * step);
          EXPECT_NEAR(gradient.view[t][i], difference, 2e-3 * (1 + std::abs(difference)))
              << tokens << " " << selected << ": " << t << " " << i;
        }
    };
    expect_gradient(c.q_TJX, c.dq);
    expect_gradient(c.w_TJ, c.dw);
    expect_gradient(c.k_TX, c.dk);
  }
}

// Nothing to learn where indexer and attention agree: both are uniform when every score is 0.
TEST(DsaTraining, T4TheLossIsZeroWhereBothAreUniform) {
  for (bool is_selected : {false, true}) {
    Case c(70);
    if (is_selected) c.select(16);
    std::fill(c.q.storage.begin(), c.q.storage.end(), 0.0f);
    std::fill(c.w_TJ.storage.begin(), c.w_TJ.storage.end(), 0.0f);
    auto out = c.output();
    indexer_loss(c.input(), out);
    EXPECT_NEAR(out.loss / 70, 0, 1e-6);
    for (float value : c.dw.storage) EXPECT_NEAR(value, 0, 1e-5);
  }
}

// No loss and finite, zero gradients.
TEST(DsaTraining, T5AQueryWithoutKeysCountsForNothing) {
  Case with(40), without(40);
  with.select(8);
  without.select(8);
  with.lists_T[13].clear();
  without.lists_T[13].clear();
  for (float& value : std::span(without.q_TJX.view[13], without.q_TJX.view.cols)) value = 1e6f;
  auto first = with.output(), second = without.output();
  indexer_loss(with.input(), first);
  indexer_loss(without.input(), second);
  EXPECT_TRUE(std::isfinite(first.loss));
  EXPECT_EQ(first.loss, second.loss);
  for (int64_t i = 0; i < with.dq.view.cols; ++i) EXPECT_EQ(with.dq.view[13][i], 0);
  for (int64_t j = 0; j < kIndexHeads; ++j) EXPECT_EQ(with.dw.view[13][j], 0);
  EXPECT_EQ(max_difference(with.dk.view, without.dk.view), 0);
}

// The last queries of a sequence alone: their part of the loss, and no gradient of another query.
TEST(IndexerLoss, FewerQueriesThanKeysAreTheSequencesLast) {
  for (const auto& [selected, precision] : {std::pair<int64_t, Precision>(0, Precision::kF32),
                                            {8, Precision::kF32},
                                            {8, Precision::kBF16}}) {
    Case all(150), first(80), last(150);
    for (Case* c : {&all, &first, &last})
      if (selected > 0) c->select(selected);
    auto whole = all.output(), begin = first.output(), end = last.output();
    all.lists_T.resize(selected > 0 ? 150 : 0);
    if (selected > 0) all.lists_T[100].clear();
    IndexerLossInput input = all.input();
    input.shape.precision = precision;
    indexer_loss(input, whole);
    const auto head = [](View2<const float> x) { return x.slice_rows(0, 80); };
    IndexerLossInput early = input, late = input;
    early.q = head(input.q), early.k = head(input.k);
    early.q_TJX = head(input.q_TJX), early.w_TJ = head(input.w_TJ), early.k_SX = head(input.k_SX);
    if (selected > 0) early.keys_T = input.keys_T.slice(0, 80);
    const auto tail = [](auto x) { return x.slice_rows(80, 150); };
    late.q = tail(input.q), late.q_TJX = tail(input.q_TJX), late.w_TJ = tail(input.w_TJ);
    late.lse_HT = View2<const float>(input.lse_HT.data + 80, kHeads, 70, input.lse_HT.stride);
    if (selected > 0) late.keys_T = input.keys_T.slice(80, 70);
    end.dq_TJX = tail(end.dq_TJX), end.dw_TJ = tail(end.dw_TJ);
    indexer_loss(early, begin);
    indexer_loss(late, end);
    EXPECT_NEAR(begin.loss + end.loss, whole.loss, 1e-4);
    EXPECT_LE(max_difference(tail(whole.dq_TJX), end.dq_TJX), 1e-5);
    EXPECT_LE(max_difference(tail(whole.dw_TJ), end.dw_TJ), 1e-5);
    for (int64_t s = 0; s < 150; ++s)
      for (int64_t x = 0; x < kDim; ++x)
        EXPECT_NEAR((s < 80 ? begin.dk_SX[s][x] : 0) + end.dk_SX[s][x], whole.dk_SX[s][x], 1e-4);
  }
}

TEST(IndexerLoss, BitsDoNotDependOnTheThreads) {
  const int before = base::num_threads();
  for (const auto& [is_selected, precision] :
       {std::pair(false, Precision::kF32), {true, Precision::kF32}, {true, Precision::kBF16}}) {
    Case one(700, 70), two(700, 70);
    if (is_selected) {
      one.select(30);
      two.select(30);
    }
    auto first = one.output(), second = two.output();
    auto input = one.input(), same = two.input();
    input.shape.precision = same.shape.precision = precision;
    base::set_num_threads(1);
    indexer_loss(input, first);
    base::set_num_threads(2);
    indexer_loss(same, second);
    EXPECT_EQ(first.loss, second.loss);
    EXPECT_EQ(max_difference(one.dq.view, two.dq.view), 0);
    EXPECT_EQ(max_difference(one.dw.view, two.dw.view), 0);
    EXPECT_EQ(max_difference(one.dk.view, two.dk.view), 0);
  }
  base::set_num_threads(before);
}

TEST(IndexerLoss, RecallIsTheTeachersMassOnTheBestKeys) {
  Case c(100);
  auto input = c.input();
  auto out = c.output();
  input.recall_k = 100;
  indexer_loss(input, out);
  EXPECT_NEAR(out.recall, 100, 1e-3);  // all of it
  // A uniform teacher: min(k, t + 1) of t + 1 keys, whichever they are.
  std::fill(c.q.storage.begin(), c.q.storage.end(), 0.0f);
  input = c.input();
  input.recall_k = 10;
  indexer_loss(input, out);
  double expected = 0;
  for (int64_t t = 0; t < 100; ++t) expected += std::min(1.0, 10.0 / static_cast<double>(t + 1));
  EXPECT_NEAR(out.recall, expected, 1e-3);
}

IndexerLossOutput run(Case& c, Precision precision) {
  auto out = c.output();
  auto input = c.input();
  input.shape.precision = precision;
  indexer_loss(input, out);
  return out;
}

// The selected form in bf16: its own kernel.
TEST(IndexerLoss, BF16ProductsStayWithinTheirRounding) {
  Case exact(150), rounded(150);
  exact.select(24);
  rounded.select(24);
  const auto expected = run(exact, Precision::kF32), out = run(rounded, Precision::kBF16);
  EXPECT_NEAR(out.loss, expected.loss, 5e-3 * expected.loss);
  EXPECT_LE(relative_error(rounded.dq.view, exact.dq.view), 2e-2);
  EXPECT_LE(relative_error(rounded.dw.view, exact.dw.view), 2e-2);
  EXPECT_LE(relative_error(rounded.dk.view, exact.dk.view), 2e-2);
}

// The same with operands that rounding leaves alone, so that no relu turns; more keys than a
// chunk, more columns than a thread takes.
TEST(IndexerLoss, BF16GradientsOfRoundedOperands) {
  Case exact(299, 70), rounded(299, 70);
  for (Case* c : {&exact, &rounded}) {
    for (TestMatrix* x : {&c->q, &c->k, &c->q_TJX, &c->k_TX}) round_to_bf16(x->storage, x->storage);
    c->select(150);
  }
  const auto expected = run(exact, Precision::kF32), out = run(rounded, Precision::kBF16);
  EXPECT_NEAR(out.loss, expected.loss, 1e-5 * expected.loss);
  EXPECT_LE(relative_error(rounded.dq.view, exact.dq.view), 3e-3);
  EXPECT_LE(relative_error(rounded.dw.view, exact.dw.view), 1e-4);
  EXPECT_LE(relative_error(rounded.dk.view, exact.dk.view), 3e-3);
}

// Of the case's lists, as attention gives them, in double precision.
std::vector<float> exact_probabilities(const Case& c) {
  std::vector<float> p;
  for (int64_t t = 0; t < c.tokens; ++t)
    for (const int32_t s : c.lists_T[t]) {
      double sum = 0;
      for (int64_t h = 0; h < kHeads; ++h) {
        double dot = 0;
        for (int64_t d = h * kQk; d < (h + 1) * kQk; ++d)
          dot += static_cast<double>(c.q.view[t][d]) * c.k.view[s][d];
        sum += std::exp(kShape.scale * dot - c.lse.view[h][t]);
      }
      p.push_back(static_cast<float>(sum / kHeads));
    }
  return p;
}

// The form that takes the teacher from attention, in tiles where there are any: more than a block
// of queries, a last one that is not full, queries without keys, more keys than a chunk.
TEST(IndexerLoss, BF16GradientsFromGivenProbabilities) {
  for (const int64_t dim : {16, 19, 70}) {
    Case exact(299, dim), rounded(299, dim);
    for (Case* c : {&exact, &rounded}) {
      for (TestMatrix* x : {&c->q_TJX, &c->k_TX}) round_to_bf16(x->storage, x->storage);
      c->select(150);
      for (const int64_t t : {0, 40, 41, 298}) c->lists_T[t].clear();
    }
    const auto expected = run(exact, Precision::kF32);
    auto input = rounded.input();
    const auto probabilities = exact_probabilities(rounded);
    input.shape.precision = Precision::kBF16;
    input.probabilities = probabilities.data();
    auto out = rounded.output();
    indexer_loss(input, out);
    EXPECT_NEAR(out.loss, expected.loss, 1e-5 * expected.loss);
    EXPECT_LE(relative_error(rounded.dq.view, exact.dq.view), 3e-3);
    EXPECT_LE(relative_error(rounded.dw.view, exact.dw.view), 1e-4);
    EXPECT_LE(relative_error(rounded.dk.view, exact.dk.view), 3e-3);
    for (int64_t i = 0; i < rounded.dq.view.cols; ++i) EXPECT_EQ(rounded.dq.view[40][i], 0);
    for (int64_t j = 0; j < kIndexHeads; ++j) EXPECT_EQ(rounded.dw.view[40][j], 0);
  }
}

// Operands that are exact in bf16, every view padded, more keys than queries, lists that begin
// within a longer array, teachers that do not sum to one; against loops in double precision.
struct GivenCase {
  int64_t num_queries, num_keys, dim;
  AttentionShape shape{1, 2, 1, 0.3f, Precision::kBF16};
  TestMatrix q, k, lse, q_TJX, w_TJ, k_SX, dq, dw, dk;
  TestSelection selection;  // with a query before the first
  std::vector<float> p;

  GivenCase(int64_t num_queries, int64_t num_keys, int64_t heads, int64_t dim)
      : num_queries(num_queries),
        num_keys(num_keys),
        dim(dim),
        q(num_queries, 2, 1),
        k(num_keys, 2, 2),
        lse(1, num_queries, 3),
        q_TJX(num_queries, heads * dim, 4, 1, 3),
        w_TJ(num_queries, heads, 5, 2, 1),
        k_SX(num_keys, dim, 6, 3, 5),
        dq(num_queries, heads * dim, 7, 1, 2),
        dw(num_queries, heads, 8, 3, 4),
        dk(num_keys, dim, 9, 2, 7) {
    for (TestMatrix* x : {&q_TJX, &k_SX}) round_to_bf16(x->storage, x->storage);
    for (float& x : k_SX.storage) x /= 8;
    base::Random random(13);
    std::vector<std::vector<int32_t>> lists_T = {{0}};
    for (int64_t t = 0; t < num_queries; ++t) {
      std::set<int32_t> keys;
      const int64_t count = t % 9 == 4 ? 0 : 1 + static_cast<int64_t>(random.below(300));
      for (int64_t i = 0; i < count; ++i) keys.insert(static_cast<int32_t>(random.below(num_keys)));
      lists_T.emplace_back(keys.begin(), keys.end());
    }
    selection = TestSelection(lists_T);
    for (size_t i = 0; i < selection.keys.size(); ++i)
      p.push_back(static_cast<float>(random.below(10)) * 0.01f);
  }

  SelectedKeys keys_T() const { return selection.view().slice(1, num_queries); }

  double run() {
    IndexerLossOutput out{0, 7, dq.view, dw.view, dk.view};
    indexer_loss(
        {shape, q.view, k.view, lse.view, q_TJX.view, w_TJ.view, k_SX.view, keys_T(), p.data(), 0},
        out);
    EXPECT_EQ(out.recall, 0);
    return out.loss;
  }
};

// The same in double precision; returns the loss.
double expect_given(const GivenCase& c, View2<float> dq, View2<float> dw, View2<float> dk) {
  double loss = 0;
  for (int64_t t = 0; t < c.num_queries; ++t) {
    const auto keys = c.keys_T()[t];
    const float* const p = c.p.data() + (keys.data() - c.selection.keys.data());
    std::vector<std::vector<double>> z(keys.size(), std::vector<double>(c.w_TJ.view.cols));
    std::vector<double> score(keys.size());
    double maximum = -INFINITY, sum = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
      for (int64_t j = 0; j < c.w_TJ.view.cols; ++j) {
        for (int64_t x = 0; x < c.dim; ++x)
          z[i][j] += static_cast<double>(c.q_TJX.view[t][j * c.dim + x]) * c.k_SX.view[keys[i]][x];
        score[i] += c.w_TJ.view[t][j] * std::max(z[i][j], 0.0);
      }
      maximum = std::max(maximum, score[i]);
    }
    for (const double x : score) sum += std::exp(x - maximum);
    for (size_t i = 0; i < keys.size(); ++i) {
      const double log_softmax = score[i] - maximum - std::log(sum);
      if (p[i] > 0) loss += p[i] * (std::log(p[i]) - log_softmax);
      const double g = std::exp(log_softmax) - p[i];
      for (int64_t j = 0; j < c.w_TJ.view.cols; ++j) {
        if (z[i][j] <= 0) continue;
        dw[t][j] += static_cast<float>(g * z[i][j]);
        for (int64_t x = 0; x < c.dim; ++x) {
          dq[t][j * c.dim + x] +=
              static_cast<float>(g * c.w_TJ.view[t][j] * c.k_SX.view[keys[i]][x]);
          dk[keys[i]][x] +=
              static_cast<float>(g * c.w_TJ.view[t][j] * c.q_TJX.view[t][j * c.dim + x]);
        }
      }
    }
  }
  return loss;
}

TEST(IndexerLoss, BF16FormsEqualLoopsOverExactOperands) {
  const int before = base::num_threads();
  for (const auto& [queries, keys, heads, dim] :
       {std::tuple(40, 70, 1, 16), std::tuple(300, 9000, 3, 19), std::tuple(65, 80, 6, 70)}) {
    GivenCase c(queries, keys, heads, dim), again(queries, keys, heads, dim);
    base::set_num_threads(1);
    const double loss = c.run();
    base::set_num_threads(2);
    EXPECT_EQ(again.run(), loss);
    base::set_num_threads(before);
    EXPECT_EQ(max_difference(again.dq.view, c.dq.view), 0);
    EXPECT_EQ(max_difference(again.dw.view, c.dw.view), 0);
    EXPECT_EQ(max_difference(again.dk.view, c.dk.view), 0);
    TestMatrix dq(queries, heads * dim, 0), dw(queries, heads, 0), dk(keys, dim, 0);
    for (TestMatrix* x : {&dq, &dw, &dk}) std::fill(x->storage.begin(), x->storage.end(), 0.0f);
    const double expected = expect_given(c, dq.view, dw.view, dk.view);
    EXPECT_NEAR(loss, expected, 2e-5 * (1 + std::abs(expected)));
    EXPECT_LE(relative_error(c.dq.view, dq.view), 4e-3);
    EXPECT_LE(relative_error(c.dw.view, dw.view), 1e-4);
    EXPECT_LE(relative_error(c.dk.view, dk.view), 4e-3);
  }
}

// What attention gives beside its output is what the loss computes without it.
TEST(IndexerLoss, ProbabilitiesThatAttentionGaveAreTheTeacher) {
  AttentionShape shape = kShape;
  shape.precision = Precision::kBF16;
  Case again(150), given(150);
  again.select(24);
  given.select(24);
  auto expected = again.output(), out = given.output();
  auto input = again.input();
  input.shape = shape;
  indexer_loss(input, expected);
  input = given.input();
  input.shape = shape;
  std::vector<float> probabilities(given.selection.keys.size());
  sparse_attention_forward(shape, {given.q.view, given.k.view, given.v.view, given.out.view,
                                   given.lse.view, input.keys_T, probabilities.data()});
  input.probabilities = probabilities.data();
  indexer_loss(input, out);
  EXPECT_NEAR(out.loss, expected.loss, 5e-3 * expected.loss);
  EXPECT_LE(relative_error(given.dk.view, again.dk.view), 2e-3);  // both round to bf16
}

}  // namespace
}  // namespace fathom::kernels
