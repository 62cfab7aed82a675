#include "kernels/exponential_race.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/random.h"

namespace fathom::kernels {
namespace {

int64_t reference_winner(const std::vector<float>& weight, const std::vector<int32_t>& ids,
                         uint64_t key) {
  double first = std::numeric_limits<double>::infinity();
  int64_t winner = -1;
  for (size_t i = 0; i < weight.size(); ++i) {
    const uint64_t n = ids.empty() ? i : static_cast<uint64_t>(ids[i]);
    const double u =
        std::ldexp(static_cast<double>(base::mix_bits(key + n * base::kRandomStep) >> 12), -52);
    const double time = -std::log1p(-u) / static_cast<double>(weight[i]);
    if (weight[i] > 0 && time < first) first = time, winner = static_cast<int64_t>(i);
  }
  return winner;
}

// Weights as a softmax has them: few large ones, many that hardly count, some of zero.
std::vector<float> softmax_like(int64_t count, base::Random& random) {
  std::vector<float> weight(count);
  for (float& w : weight)
    w = random.below(4) == 0 ? 0.0f : static_cast<float>(std::exp(4 * random.normal()));
  return weight;
}

TEST(ExponentialRace, TheFirstClockWinsInRacesOfAllLengths) {
  base::Random random(1);
  for (const int64_t count : {1, 2, 7, 255, 256, 257, 1000, 8192}) {
    for (int trial = 0; trial < 50; ++trial) {
      const std::vector<float> weight = softmax_like(count, random);
      const uint64_t key = random.next();
      EXPECT_EQ(first_to_ring(weight.data(), nullptr, count, key),
                reference_winner(weight, {}, key))
          << count;
    }
  }
}

// Near-equal weights: the block's filter decides often, and close to where it must not.
TEST(ExponentialRace, NoWinnerIsPassedOver) {
  base::Random random(6);
  for (int trial = 0; trial < 20'000; ++trial) {
    std::vector<float> weight(520);
    for (float& w : weight) w = 1 + static_cast<float>(random.uniform());
    const uint64_t key = random.next();
    ASSERT_EQ(first_to_ring(weight.data(), nullptr, 520, key), reference_winner(weight, {}, key));
  }
}

TEST(ExponentialRace, TiesGoToTheFirst) {
  const std::vector<float> weight(600, 1.0f);
  const std::vector<int32_t> ids(600, 7);
  EXPECT_EQ(first_to_ring(weight.data(), ids.data(), 600, 1), 0);
}

TEST(ExponentialRace, NothingRingsWithoutWeight) {
  const std::vector<float> weight(300, 0.0f);
  EXPECT_EQ(first_to_ring(weight.data(), nullptr, 300, 1), -1);
  EXPECT_EQ(first_to_ring(nullptr, nullptr, 0, 1), -1);
}

TEST(ExponentialRace, WinsAreAsOftenAsWeightsSay) {
  const std::vector<float> weight = {1, 0, 2, 5, 1e-30f, 8e-3f};
  const double sum = std::accumulate(weight.begin(), weight.end(), 0.0);
  const int num_draws = 200'000;
  std::vector<int> wins(weight.size());
  base::Random random(2);
  for (int i = 0; i < num_draws; ++i)
    ++wins[first_to_ring(weight.data(), nullptr, std::ssize(weight), random.next())];
  for (size_t i = 0; i < weight.size(); ++i) {
    const double p = weight[i] / sum;
    EXPECT_NEAR(wins[i], num_draws * p, 4 * std::sqrt(num_draws * p * (1 - p))) << i;
  }
}

TEST(ExponentialRace, WithinAPartTheWinnerOfAllStaysFirst) {
  base::Random random(3);
  int num_within = 0;
  for (int trial = 0; trial < 400; ++trial) {
    const std::vector<float> weight = softmax_like(600, random);
    std::vector<int32_t> ids;
    std::vector<float> part;
    for (int32_t id = 599; id >= 0; --id) {  // in no ascending order, as ranks have it
      if (random.below(2) == 0) continue;
      ids.push_back(id);
      part.push_back(weight[id]);
    }
    const uint64_t key = random.next();
    const auto of_part = first_to_ring(part.data(), ids.data(), std::ssize(part), key);
    EXPECT_EQ(of_part, reference_winner(part, ids, key));
    const auto of_all = first_to_ring(weight.data(), nullptr, 600, key);
    if (std::find(ids.begin(), ids.end(), of_all) == ids.end()) continue;
    EXPECT_EQ(ids[of_part], of_all);
    ++num_within;
  }
  EXPECT_GT(num_within, 100);
}

TEST(ExponentialRace, DrawsWithOneKeyAgreeAsOftenAsPromised) {
  base::Random random(4);
  for (const double distance : {0.1, 1.0}) {
    std::vector<float> p = softmax_like(100, random), q(p.size());
    for (size_t i = 0; i < p.size(); ++i)
      q[i] = p[i] * static_cast<float>(std::exp(distance * random.normal()));
    const double p_sum = std::accumulate(p.begin(), p.end(), 0.0);
    const double q_sum = std::accumulate(q.begin(), q.end(), 0.0);
    double variation = 0;
    for (size_t i = 0; i < p.size(); ++i) variation += std::abs(p[i] / p_sum - q[i] / q_sum) / 2;
    const int num_draws = 20'000;
    int num_same = 0;
    for (int i = 0; i < num_draws; ++i) {
      const uint64_t key = random.next();
      num_same +=
          first_to_ring(p.data(), nullptr, 100, key) == first_to_ring(q.data(), nullptr, 100, key);
    }
    const double same = static_cast<double>(num_same) / num_draws;
    EXPECT_GT(same, (1 - variation) / (1 + variation) - 0.02) << variation;
    EXPECT_LT(same, 1 - variation + 0.02) << variation;
  }
}

}  // namespace
}  // namespace fathom::kernels
