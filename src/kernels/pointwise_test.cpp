#include "kernels/pointwise.h"

#include <gtest/gtest.h>

#include "base/parallel.h"
#include "kernels/simd.h"
#include "kernels/softmax_row.h"
#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

TEST(SoftmaxRow, ExponentialsHaveTheBitsOfEightLanes) {
  for (int64_t count : {1, 7, 8, 15, 16, 17, 100, 1024}) {
    TestMatrix x(1, count, 3, 1);
    if (count > 7) x.view[0][6] = -INFINITY;
    std::vector<float> expected(x.view[0], x.view[0] + count);
    F32x8 sum{};
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t lanes = std::min(kLanes, count - i);
      F32x8 p = exp(load_partial(expected.data() + i, lanes) * 3.0f - 1.5f);
      for (int64_t lane = lanes; lane < kLanes; ++lane) p[lane] = 0;
      store_partial(expected.data() + i, p, lanes);
      sum += p;
    }
    // The sanitizers' build does not fuse multiplications and additions here, the kernel always
    // does.
#if defined(__SANITIZE_ADDRESS__)
    constexpr float kTolerance = 1e-6f;
#else
    constexpr float kTolerance = 0;
#endif
    const float total = horizontal_sum(sum);
    EXPECT_NEAR(exp_scaled_row(x.view[0], count, 3.0f, 1.5f), total, kTolerance * total) << count;
    for (int64_t i = 0; i < count; ++i)
      EXPECT_NEAR(x.view[0][i], expected[i], kTolerance * expected[i]) << count << " " << i;
  }
}

TEST(Exp, IsAccurateOverItsRange) {
  for (double x = -87; x < 88; x += 0.01) {
    const float lane = static_cast<float>(x);
    const float got = exp(broadcast(lane))[3];
    const double expected = std::exp(static_cast<double>(lane));
    EXPECT_NEAR(got / expected, 1.0, 3e-7) << x;
  }
  EXPECT_EQ(exp(broadcast(-INFINITY))[0], 0.0f);
  EXPECT_EQ(exp(broadcast(0.0f))[0], 1.0f);
  EXPECT_TRUE(std::isinf(exp(broadcast(100.0f))[0]));
  EXPECT_TRUE(std::isnan(exp(broadcast(NAN))[0]));
}

TEST(RmsNorm, EqualsItsFormula) {
  for (int64_t cols : {1, 7, 8, 100}) {
    const TestMatrix x(5, cols, 1), weight(1, cols, 2);
    TestMatrix y(5, cols, 3);
    rms_norm(x.view, weight.view.data, 1e-6f, y.view, nullptr);
    for (int64_t m = 0; m < 5; ++m) {
      double squares = 0;
      for (int64_t i = 0; i < cols; ++i) squares += std::pow(x.view[m][i], 2);
      for (int64_t i = 0; i < cols; ++i)
        EXPECT_NEAR(y.view[m][i],
                    x.view[m][i] / std::sqrt(squares / cols + 1e-6) * weight.view[0][i], 1e-5);
    }
  }
}

TEST(RmsNorm, WeightGradientDoesNotDependOnTheThreads) {
  const TestMatrix x(700, 33, 1), weight(1, 33, 2), dy(700, 33, 3);
  TestMatrix y(700, 33, 4), dx(700, 33, 5), inverse(1, 700, 6), one(1, 33, 7), two(1, 33, 8);
  rms_norm(x.view, weight.view.data, 1e-6f, y.view, inverse.view.data);
  for (auto [threads, out] : {std::pair{1, &one}, {2, &two}}) {
    base::set_num_threads(threads);
    rms_norm_backward(x.view, weight.view.data, inverse.view.data, dy.view, dx.view,
                      out->view.data);
  }
  EXPECT_EQ(max_difference(one.view, two.view), 0.0);
}

TEST(Softmax, EqualsItsFormulaInPlaceAndWhereverTheRowLies) {
  base::Random random(5);
  for (const int64_t cols : {1, 7, 64, 161}) {
    std::vector<float> x(3 * cols);
    for (float& value : x) value = static_cast<float>(100 * random.normal());
    std::vector<float> y(x.size());
    softmax({x.data(), 3, cols}, {y.data(), 3, cols});
    for (int64_t m = 0; m < 3; ++m) {
      const float* const row = x.data() + m * cols;
      const double maximum = *std::max_element(row, row + cols);
      double sum = 0;
      for (int64_t i = 0; i < cols; ++i) sum += std::exp(row[i] - maximum);
      for (int64_t i = 0; i < cols; ++i)
        EXPECT_NEAR(y[m * cols + i], std::exp(row[i] - maximum) / sum, 1e-6);
    }
    std::vector<float> last(x.end() - cols, x.end());
    softmax({last.data(), 1, cols}, {last.data(), 1, cols});
    EXPECT_TRUE(std::equal(last.begin(), last.end(), y.end() - cols));
  }
}

TEST(Rope, InverseUndoesBothLayoutsAndTouchesItsPartOnly) {
  for (bool interleaved : {true, false}) {
    TestMatrix x(4, 3 * 20, 1), original(4, 3 * 20, 1);
    TestMatrix cos(4, 4, 2), sin(4, 4, 3);
    for (int64_t i = 0; i < 16; ++i) {
      const float angle = cos.view.data[i];
      cos.view.data[i] = std::cos(angle);
      sin.view.data[i] = std::sin(angle);
    }
    Rope options{3, 20, 12, 8, interleaved, false};
    rope(options, cos.view, sin.view, x.view);
    EXPECT_GT(max_difference(x.view, original.view), 0.1);
    EXPECT_EQ(x.view[1][20 + 11], original.view[1][20 + 11]);
    // The pair that turns together tells the layouts apart.
    const float a = original.view[0][12], b = original.view[0][interleaved ? 13 : 16];
    EXPECT_NEAR(x.view[0][12], a * cos.view[0][0] - b * sin.view[0][0], 1e-6);
    options.inverse = true;
    rope(options, cos.view, sin.view, x.view);
    EXPECT_LE(max_difference(x.view, original.view), 1e-6);
  }
}

TEST(CombineRows, SumsInSlotOrder) {
  const TestMatrix x(6, 9, 1), weight(1, 4, 2);
  const int64_t slots[] = {0, 5, 3, 3};
  TestMatrix out(2, 9, 3);
  combine_rows(x.view, slots, 2, weight.view.data, out.view);
  const float* w = weight.view.data;
  EXPECT_NEAR(out.view[0][4], w[0] * x.view[0][4] + w[1] * x.view[5][4], 1e-6);
  EXPECT_NEAR(out.view[1][8], (w[2] + w[3]) * x.view[3][8], 1e-6);
}

}  // namespace
}  // namespace fathom::kernels
