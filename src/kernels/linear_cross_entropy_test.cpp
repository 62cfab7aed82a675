#include "kernels/linear_cross_entropy.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "kernels/softmax_row.h"
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
  Problem(int64_t rows, int64_t vocab, int64_t dim, int64_t padding = 0)
      : x(rows, dim, 1, 0, padding),
        head(vocab, dim, 2, 0, padding),
        dx(rows, dim, 3, 0, padding),
        dhead(vocab, dim, 4, 0, padding),
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
          .dhead_VD = dhead.view};
  }
};

struct Expected {
  std::vector<double> losses, dx, dhead;
};

Expected reference_of(const Problem& problem) {
  const auto& io = problem.io;
  const int64_t dim = io.x_MD.cols, vocab = io.head_VD.rows;
  Expected out{{}, std::vector<double>(io.x_MD.rows * dim), std::vector<double>(vocab * dim)};
  for (int64_t m = 0; m < io.x_MD.rows; ++m) {
    out.losses.push_back(0);
    if (problem.targets[m] < 0) continue;
    std::vector<double> logits(vocab);
    double sum = 0;
    for (int64_t v = 0; v < vocab; ++v) {
      for (int64_t d = 0; d < dim; ++d)
        logits[v] += static_cast<double>(io.x_MD[m][d]) * io.head_VD[v][d];
      sum += std::exp(logits[v]);
    }
    out.losses[m] = std::log(sum) - logits[problem.targets[m]];
    for (int64_t v = 0; v < vocab; ++v) {
      const double g =
          io.gradient_scale * (std::exp(logits[v]) / sum - (v == problem.targets[m] ? 1 : 0));
      for (int64_t d = 0; d < dim; ++d) {
        out.dx[m * dim + d] += g * io.head_VD[v][d];
        out.dhead[v * dim + d] += g * io.x_MD[m][d];
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

void expect_close(const Problem& problem, double tolerance) {
  const Expected expected = reference_of(problem);
  for (size_t m = 0; m < expected.losses.size(); ++m)
    EXPECT_NEAR(problem.losses[m], expected.losses[m], tolerance * (1 + expected.losses[m])) << m;
  EXPECT_LE(relative_error(problem.dx.view, expected.dx), tolerance);
  EXPECT_LE(relative_error(problem.dhead.view, expected.dhead), tolerance);
}

// One block, ends within blocks, several ranges of the vocabulary, several bands of rows.
TEST(LinearCrossEntropy, LossesAndGradientsAreTheFormulas) {
  for (const auto& [rows, vocab, dim] : {std::tuple(1, 1, 1),
                                         {3, 1000, 16},
                                         {256, 256, 8},
                                         {300, 517, 24},
                                         {20, 8300, 12},
                                         {1029, 300, 5}}) {
    for (const int64_t padding : {0, 3}) {
      Problem problem(rows, vocab, dim, padding);
      linear_cross_entropy(problem.io);
      if (vocab == 1) {
        EXPECT_EQ(problem.losses[0], 0.0);
        EXPECT_EQ(problem.dx.view[0][0], 0.0f);
        continue;
      }
      SCOPED_TRACE(fmt::format("{} {} {}", rows, vocab, dim));
      expect_close(problem, 1e-5);
    }
  }
}

// Rounded to bf16 are operands and the gradients of logits.
TEST(LinearCrossEntropy, ProductsMayBeInBF16) {
  Problem problem(300, 517, 24);
  problem.io.precision = Precision::kBF16;
  linear_cross_entropy(problem.io);
  expect_close(problem, 2e-2);
}

TEST(LinearCrossEntropy, IgnoredRowsHaveNoPart) {
  Problem problem(8, 700, 16);
  std::fill(problem.targets.begin(), problem.targets.end(), -1);
  linear_cross_entropy(problem.io);
  for (int64_t m = 0; m < 8; ++m) {
    EXPECT_EQ(problem.losses[m], 0.0);
    EXPECT_EQ(max_row(problem.dx.view[m], 16), 0.0f);
  }
  for (int64_t v = 0; v < 700; ++v) EXPECT_EQ(max_row(problem.dhead.view[v], 16), 0.0f);
}

TEST(LinearCrossEntropy, WithoutGradientsTheLossesAreTheSame) {
  Problem problem(300, 2000, 16);
  linear_cross_entropy(problem.io);
  const std::vector<double> losses = std::exchange(problem.losses, std::vector<double>(300));
  problem.io.loss_M = problem.losses.data();
  problem.io.dx_MD = problem.io.dhead_VD = {};
  linear_cross_entropy(problem.io);
  EXPECT_EQ(problem.losses, losses);
}

TEST(LinearCrossEntropy, NoRowsGiveTheHeadNoGradient) {
  Problem problem(0, 700, 16);
  linear_cross_entropy(problem.io);
  for (int64_t v = 0; v < 700; ++v)
    for (int64_t d = 0; d < 16; ++d) EXPECT_EQ(problem.dhead.view[v][d], 0.0f);
}

TEST(LinearCrossEntropy, BitsDoNotDependOnThreads) {
  const int num_threads = base::num_threads();
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    Problem one(1100, 3000, 20), three(1100, 3000, 20);
    one.io.precision = three.io.precision = precision;
    base::set_num_threads(1);
    linear_cross_entropy(one.io);
    base::set_num_threads(3);
    linear_cross_entropy(three.io);
    base::set_num_threads(num_threads);
    EXPECT_EQ(one.losses, three.losses);
    EXPECT_EQ(max_difference(one.dx.view, three.dx.view), 0);
    EXPECT_EQ(max_difference(one.dhead.view, three.dhead.view), 0);
  }
}

// Of a whole block of the vocabulary too, and far below or above what exp can hold.
TEST(LinearCrossEntropy, LogitsOfAnySizeGiveTheLimits) {
  Problem problem(2, 1000, 1);
  problem.x.view[0][0] = problem.x.view[1][0] = 1;
  problem.targets = {999, 3};
  for (int64_t v = 0; v < 1000; ++v) problem.head.view[v][0] = v < 600 ? -kInfinity : -3e4f;
  problem.head.view[999][0] = -2.9e4f;
  linear_cross_entropy(problem.io);
  EXPECT_EQ(problem.losses[0], 0.0);
  EXPECT_EQ(problem.losses[1], kInfinity);
  problem.head.view[3][0] = 4e4f;
  linear_cross_entropy(problem.io);
  EXPECT_EQ(problem.losses[0], 6.9e4);
  EXPECT_EQ(problem.losses[1], 0.0);
}

TEST(LinearCrossEntropy, WhatIsNotFiniteStaysInItsRow) {
  for (const float bad : {kInfinity, -kInfinity, std::nanf("")}) {
    Problem problem(300, 1000, 16);
    problem.x.view[5][3] = bad;
    linear_cross_entropy(problem.io);
    for (int64_t m = 0; m < 300; ++m) {
      EXPECT_EQ(std::isfinite(problem.losses[m]), m != 5) << m;
      EXPECT_EQ(std::isfinite(problem.dx.view[m][0]), m != 5) << m;
    }
    EXPECT_FALSE(std::isfinite(problem.dhead.view[0][3]));
  }
}

}  // namespace
}  // namespace fathom::kernels
