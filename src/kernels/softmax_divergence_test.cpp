#include "kernels/softmax_divergence.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/random.h"

namespace fathom::kernels {
namespace {

std::vector<float> normal(int64_t count, double scale, uint64_t seed) {
  base::Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(scale * random.normal());
  return values;
}

std::vector<double> softmax(const std::vector<float>& logits) {
  const double maximum = *std::max_element(logits.begin(), logits.end());
  std::vector<double> result;
  double sum = 0;
  for (float logit : logits) {
    result.push_back(std::exp(logit - maximum));
    sum += result.back();
  }
  for (double& value : result) value /= sum;
  return result;
}

TEST(SoftmaxDivergence, EqualsTheFormulasInDouble) {
  for (const int64_t count : {1, 7, 8, 23, 512, 1003, 8192})
    for (const double scale : {0.1, 3.0, 40.0}) {
      std::vector<float> logits = normal(count, scale, 1), target = normal(count, scale, 2);
      for (float& value : logits) value += 100;  // a common shift changes nothing
      const std::vector<double> q = softmax(logits), p = softmax(target);
      double divergence = 0, overlap = 0;
      for (int64_t i = 0; i < count; ++i) {
        if (p[i] > 0 && q[i] > 0) divergence += p[i] * std::log(p[i] / q[i]);
        overlap += std::min(p[i], q[i]);
      }
      const auto result = softmax_divergence(logits.data(), target.data(), count);
      EXPECT_NEAR(result.divergence, divergence, 1e-5 * (1 + divergence)) << count << " " << scale;
      EXPECT_NEAR(result.overlap, overlap, 1e-5) << count << " " << scale;
      for (int64_t i = 0; i < count; ++i) EXPECT_NEAR(logits[i], q[i] - p[i], 1e-6) << i;
    }
}

TEST(SoftmaxDivergence, OfEqualRowsIsNothing) {
  std::vector<float> logits = normal(1003, 3, 1), target = logits;
  const auto result = softmax_divergence(logits.data(), target.data(), 1003);
  EXPECT_EQ(result.divergence, 0);
  EXPECT_NEAR(result.overlap, 1, 1e-6);
  for (float difference : logits) EXPECT_EQ(difference, 0);
}

}  // namespace
}  // namespace fathom::kernels
