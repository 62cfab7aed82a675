#include "kernels/linear_cross_entropy.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "kernels/fp8.h"
#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Problem {
  TestMatrix x, head, dx, dhead;
  std::vector<int64_t> targets;
  std::vector<double> losses;
  LinearCrossEntropy io;

  // Targets: every seventh ignored, the first and the last of the vocabulary among the others.
  Problem(Precision precision, int64_t rows, int64_t vocab, int64_t dim, int64_t padding = 0)
      : x(rows, dim, 1, 0, padding),
        head(vocab, dim, 2, 0, 2 * padding),
        dx(rows, dim, 3, 0, 3 * padding),
        dhead(vocab, dim, 4, 0, 4 * padding),
        losses(rows, 7.0) {
    base::Random random(5);
    for (int64_t m = 0; m < rows; ++m)
      targets.push_back(m % 7 == 3   ? -1
                        : m % 5 == 0 ? vocab - 1
                        : m % 5 == 1 ? 0
                                     : static_cast<int64_t>(random.below(vocab)));
    io = {.x_MD = x.view,
          .head_VD = head.view,
          .target_M = targets.data(),
          .loss_M = losses.data(),
          .gradient_scale = 0.25f,
          .dx_MD = dx.view,
          .dhead_VD = dhead.view,
          .precision = precision};
  }

  // As the products take it.
  double operand(float value) const {
    if (io.precision == Precision::kBF16) round_to_bf16({&value, 1}, {&value, 1});
    return value;
  }
};

struct Expected {
  std::vector<double> losses, dx, dhead;
};

Expected reference_of(const Problem& problem) {
  const auto& io = problem.io;
  const int64_t dim = io.x_MD.cols, vocab = io.head_VD.rows;
  const auto operands = [&](View2<const float> matrix) {
    std::vector<double> values;
    for (int64_t i = 0; i < matrix.rows; ++i)
      for (int64_t d = 0; d < dim; ++d) values.push_back(problem.operand(matrix[i][d]));
    return values;
  };
  const std::vector<double> all_x = operands(io.x_MD), all_heads = operands(io.head_VD);
  Expected out{{}, std::vector<double>(io.x_MD.rows * dim), std::vector<double>(vocab * dim)};
  for (int64_t m = 0; m < io.x_MD.rows; ++m) {
    out.losses.push_back(0);
    if (problem.targets[m] < 0) continue;
    const double* const x = all_x.data() + m * dim;
    std::vector<double> logits(vocab);
    double sum = 0;
    for (int64_t v = 0; v < vocab; ++v) {
      logits[v] = std::inner_product(x, x + dim, all_heads.data() + v * dim, 0.0);
      sum += std::exp(logits[v]);
    }
    out.losses[m] = std::log(sum) - logits[problem.targets[m]];
    for (int64_t v = 0; v < vocab; ++v) {
      const double p = std::exp(logits[v]) / sum - (v == problem.targets[m] ? 1 : 0);
      const double g = problem.operand(static_cast<float>(io.gradient_scale * p));
      for (int64_t d = 0; d < dim; ++d) {
        out.dx[m * dim + d] += g * all_heads[v * dim + d];
        out.dhead[v * dim + d] += g * x[d];
      }
    }
  }
  return out;
}

// Of the norm of what is expected.
double relative_error(View2<const float> got, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < got.rows; ++i)
    for (int64_t j = 0; j < got.cols; ++j) {
      const double e = expected[i * got.cols + j];
      difference += (got[i][j] - e) * (got[i][j] - e);
      norm += e * e;
    }
  return std::sqrt(difference / norm);
}

void expect_close(const Problem& problem) {
  const Expected expected = reference_of(problem);
  const double tolerance = problem.io.precision == Precision::kBF16 ? 3e-4 : 1e-5;
  for (size_t m = 0; m < expected.losses.size(); ++m)
    EXPECT_NEAR(problem.losses[m], expected.losses[m], 1e-5 * (1 + expected.losses[m])) << m;
  EXPECT_LE(relative_error(problem.dx.view, expected.dx), tolerance);
  EXPECT_LE(relative_error(problem.dhead.view, expected.dhead), tolerance);
}

class LinearCrossEntropyIn : public testing::TestWithParam<Precision> {};
INSTANTIATE_TEST_SUITE_P(Precisions, LinearCrossEntropyIn,
                         testing::Values(Precision::kF32, Precision::kBF16), [](const auto& info) {
                           return info.param == Precision::kF32 ? "F32" : "BF16";
                         });

// One block, ends within blocks and tiles, odd numbers of tiles, several ranges of the vocabulary,
// several bands of rows.
TEST_P(LinearCrossEntropyIn, LossesAndGradientsAreTheFormulas) {
  for (const auto& [rows, vocab, dim] : {std::tuple(3, 1000, 16),
                                         {256, 256, 8},
                                         {300, 517, 24},
                                         {20, 8300, 12},
                                         {1029, 300, 5},
                                         {1100, 300, 48},
                                         {272, 272, 16},
                                         {17, 33, 80},
                                         {1041, 288, 48},
                                         {2100, 40, 32}}) {
    for (const int64_t padding : {0, 3}) {
      SCOPED_TRACE(fmt::format("{} {} {}", rows, vocab, dim));
      Problem problem(GetParam(), rows, vocab, dim, padding);
      const TestMatrix before(vocab, dim, 4, 0, 4 * padding);
      linear_cross_entropy(problem.io);
      expect_close(problem);
      for (int64_t v = 0; v + 1 < vocab; ++v)  // between rows nothing is written
        for (int64_t d = dim; d < problem.dhead.view.stride; ++d)
          ASSERT_EQ(problem.dhead.view[v][d], before.view[v][d]) << v;
    }
  }
}

TEST_P(LinearCrossEntropyIn, OneWordIsCertain) {
  Problem problem(GetParam(), 1, 1, 1);
  linear_cross_entropy(problem.io);
  EXPECT_EQ(problem.losses[0], 0.0);
  EXPECT_EQ(problem.dx.view[0][0], 0.0f);
}

// The sanitizer does not see what tiles load and store.
TEST_P(LinearCrossEntropyIn, NothingBehindTheOperandsIsTouched) {
  for (const auto& [rows, vocab, dim] : {std::tuple(17, 33, 80), {47, 300, 24}, {1041, 272, 48}}) {
    SCOPED_TRACE(fmt::format("{} {} {}", rows, vocab, dim));
    Problem problem(GetParam(), rows, vocab, dim);
    const auto guarded = [](const TestMatrix& from) {
      return std::make_unique<GuardedCopy>(from.storage.data(),
                                           from.storage.size() * sizeof(float));
    };
    const auto x = guarded(problem.x), head = guarded(problem.head), dx = guarded(problem.dx),
               dhead = guarded(problem.dhead);
    const auto view = [](const auto& copy, int64_t num_rows, int64_t cols) {
      return View2<float>(copy->template as<float>(), num_rows, cols);
    };
    problem.io.x_MD = view(x, rows, dim);
    problem.io.head_VD = view(head, vocab, dim);
    problem.io.dx_MD = view(dx, rows, dim);
    problem.io.dhead_VD = view(dhead, vocab, dim);
    linear_cross_entropy(problem.io);
    const Expected expected = reference_of(problem);
    EXPECT_LE(relative_error(problem.io.dx_MD, expected.dx), 3e-4);
    EXPECT_LE(relative_error(problem.io.dhead_VD, expected.dhead), 3e-4);
  }
}

TEST_P(LinearCrossEntropyIn, IgnoredRowsHaveNoPart) {
  Problem problem(GetParam(), 8, 700, 16);
  std::fill(problem.targets.begin(), problem.targets.end(), -1);
  for (int64_t d = 0; d < 16; ++d) problem.x.view[2][d] *= 1e4f;  // logits that no exp holds
  linear_cross_entropy(problem.io);
  for (int64_t m = 0; m < 8; ++m) {
    EXPECT_EQ(problem.losses[m], 0.0);
    for (int64_t d = 0; d < 16; ++d) EXPECT_EQ(problem.dx.view[m][d], 0.0f);
  }
  for (int64_t v = 0; v < 700; ++v)
    for (int64_t d = 0; d < 16; ++d) EXPECT_EQ(problem.dhead.view[v][d], 0.0f);
}

TEST_P(LinearCrossEntropyIn, WithoutGradientsTheLossesAreTheSame) {
  Problem problem(GetParam(), 300, 2000, 16);
  linear_cross_entropy(problem.io);
  const std::vector<double> losses = std::exchange(problem.losses, std::vector<double>(300));
  problem.io.loss_M = problem.losses.data();
  problem.io.dx_MD = problem.io.dhead_VD = {};
  linear_cross_entropy(problem.io);
  EXPECT_EQ(problem.losses, losses);
}

TEST_P(LinearCrossEntropyIn, NoRowsGiveTheHeadNoGradient) {
  Problem problem(GetParam(), 0, 700, 16);
  linear_cross_entropy(problem.io);
  for (int64_t v = 0; v < 700; ++v)
    for (int64_t d = 0; d < 16; ++d) EXPECT_EQ(problem.dhead.view[v][d], 0.0f);
}

TEST_P(LinearCrossEntropyIn, BitsDoNotDependOnThreads) {
  const int num_threads = base::num_threads();
  Problem one(GetParam(), 1100, 3000, 20), three(GetParam(), 1100, 3000, 20);
  base::set_num_threads(1);
  linear_cross_entropy(one.io);
  base::set_num_threads(3);
  linear_cross_entropy(three.io);
  base::set_num_threads(num_threads);
  EXPECT_EQ(one.losses, three.losses);
  EXPECT_EQ(max_difference(one.dx.view, three.dx.view), 0);
  EXPECT_EQ(max_difference(one.dhead.view, three.dhead.view), 0);
}

// Of a whole block of the vocabulary too, and far below or above what exp can hold. All numbers are
// exact in bf16.
TEST_P(LinearCrossEntropyIn, LogitsOfAnySizeGiveTheLimits) {
  Problem problem(GetParam(), 2, 1000, 1);
  problem.x.view[0][0] = problem.x.view[1][0] = 1;
  problem.targets = {999, 3};
  for (int64_t v = 0; v < 1000; ++v) problem.head.view[v][0] = v < 600 ? -kInfinity : -32768.0f;
  problem.head.view[999][0] = -30720.0f;
  linear_cross_entropy(problem.io);
  EXPECT_EQ(problem.losses[0], 0.0);
  EXPECT_EQ(problem.losses[1], kInfinity);
  problem.head.view[3][0] = 32768.0f;
  linear_cross_entropy(problem.io);
  EXPECT_EQ(problem.losses[0], 63488.0);
  EXPECT_EQ(problem.losses[1], 0.0);
}

TEST_P(LinearCrossEntropyIn, WhatIsNotFiniteStaysInItsRowAndCall) {
  Problem clean(GetParam(), 300, 1000, 16);
  linear_cross_entropy(clean.io);
  for (const float bad : {kInfinity, -kInfinity, std::nanf("")}) {
    Problem problem(GetParam(), 300, 1000, 16);
    problem.x.view[295][3] = bad;  // in the last strip before a block of fewer columns
    linear_cross_entropy(problem.io);
    for (int64_t m = 0; m < 300; ++m) {
      EXPECT_EQ(std::isfinite(problem.losses[m]), m != 295) << m;
      EXPECT_EQ(std::isfinite(problem.dx.view[m][0]), m != 295) << m;
    }
    EXPECT_FALSE(std::isfinite(problem.dhead.view[0][3]));
    problem.x.view[295][3] = clean.x.view[295][3];
    for (int64_t v = 990; v < 1000; ++v) problem.head.view[v][0] = bad;  // one column block's
    linear_cross_entropy(problem.io);
    EXPECT_FALSE(std::isfinite(problem.losses[0]) && bad != -kInfinity);
    Problem again(GetParam(), 300, 1000, 16);
    linear_cross_entropy(again.io);
    EXPECT_EQ(again.losses, clean.losses);
    EXPECT_EQ(max_difference(again.dx.view, clean.dx.view), 0);
    EXPECT_EQ(max_difference(again.dhead.view, clean.dhead.view), 0);
  }
}

TEST(LinearCrossEntropy, WrongTargetsAndHalfTheGradientsAreRefused) {
  Problem problem(Precision::kF32, 3, 10, 4);
  for (const int64_t target : {-2, 10}) {
    problem.targets[1] = target;
    EXPECT_THROW(linear_cross_entropy(problem.io), InternalError) << target;
  }
  problem.targets[1] = 9;
  problem.io.dhead_VD = {};
  EXPECT_THROW(linear_cross_entropy(problem.io), InternalError);
}

}  // namespace
}  // namespace fathom::kernels
