#include "kernels/scattered_bf16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "kernels/fp8.h"
#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kRows = 90;

float bf16(float x) { return from_bf16(to_bf16(x)); }

// Numbers that are exact in bf16.
float weight_of(int64_t t, int64_t h, int64_t i) {
  return 0.25f * static_cast<float>(h + 1) - 0.125f * static_cast<float>((i + t) % 7);
}

// Heads and columns; the weights of all heads go to the same rows.
class ScatteredBF16 : public ::testing::TestWithParam<std::pair<int64_t, int64_t>> {};
INSTANTIATE_TEST_SUITE_P(Shapes, ScatteredBF16,
                         ::testing::Values(std::pair(1, 1), std::pair(1, 48), std::pair(2, 32),
                                           std::pair(4, 64), std::pair(5, 130), std::pair(9, 17)));

TEST_P(ScatteredBF16, AddsWhatLoopsOverRoundedNumbersAdd) {
  if (!has_bf16_dot()) GTEST_SKIP() << "the processor has no bf16 dot products";
  const auto [heads, dim] = GetParam();
  base::Random random(3);
  std::vector<std::vector<int32_t>> lists;
  for (const int64_t count : {0, 1, 17, 40, 90, 16, 50, 0, 64}) {
    std::set<int32_t> keys;
    while (std::ssize(keys) < count) keys.insert(static_cast<int32_t>(random.below(kRows)));
    lists.emplace_back(keys.begin(), keys.end());
  }
  const TestSelection selection(lists);
  const TestMatrix x(std::ssize(lists), heads * dim, 1, 3, 1);
  for (const auto& [begin, end] : {std::pair(1, 9), {0, 7}, {5, 6}, {0, 1}, {2, 4}}) {
    QueryGroup group;
    group.assign(selection.view(), begin, end);
    const TestMatrix rows(kRows, dim, 2, 5, 3), before(kRows, dim, 2, 5, 3);
    std::vector<uint32_t> x_pairs(kGroupPairs * heads * dim), weight_pairs;
    std::vector<std::vector<double>> expected(kRows, std::vector<double>(dim));
    const int64_t step = kGroupPairs * group.num_padded_keys();
    weight_pairs.resize(heads * step);
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<std::vector<float>> weights;
      std::vector<float*> weight_rows;
      for (int64_t q = 0; q < group.size(); ++q) {
        weights.emplace_back();
        for (int64_t i = 0; i < std::ssize(lists[begin + q]); ++i) {
          weights[q].push_back(weight_of(begin + q, h, i));
          for (int64_t d = 0; d < dim; ++d)
            expected[lists[begin + q][i]][d] +=
                weight_of(begin + q, h, i) * bf16(x.view[begin + q][h * dim + d]);
        }
      }
      for (auto& row : weights) weight_rows.push_back(row.data());
      pair_weights(group, weight_rows, weight_pairs.data() + h * step);
      pair_rows(group, View2<const float>(x.view.data + h * dim, x.view.rows, dim, x.view.stride),
                dim, x_pairs.data() + kGroupPairs * h * dim);
    }
    scatter_add(
        group,
        {weight_pairs.data(), group.num_padded_keys(), x_pairs.data(), dim, kGroupPairs * heads},
        rows.view);
    for (int64_t s = 0; s < kRows; ++s)
      for (int64_t d = 0; d < dim; ++d)
        EXPECT_NEAR(rows.view[s][d], before.view[s][d] + expected[s][d],
                    1e-5 * (1 + std::abs(expected[s][d])));
    EXPECT_EQ(max_difference(rows.view, before.view) == 0, begin == 0 && end == 1);
  }
}

}  // namespace
}  // namespace fathom::kernels
