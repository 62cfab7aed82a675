#include "kernels/gathered_bf16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/fp8.h"
#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

float bf16(float x) { return from_bf16(to_bf16(x)); }

std::vector<int32_t> some_keys(int64_t count, int64_t num_rows) {
  base::Random random(3);
  std::vector<int32_t> keys(count);
  for (int32_t& key : keys) key = static_cast<int32_t>(random.below(num_rows));
  return keys;
}

class GatheredBF16 : public ::testing::TestWithParam<std::tuple<int64_t, int64_t, bool>> {
 protected:
  void SetUp() override {
    if (!has_bf16_dot()) GTEST_SKIP() << "the processor has no bf16 dot products";
  }
};

// Heads, their dimension, whether the rows have one head for all.
INSTANTIATE_TEST_SUITE_P(Shapes, GatheredBF16,
                         ::testing::Combine(::testing::Values(1, 3),
                                            ::testing::Values(1, 32, 48, 70, 129),
                                            ::testing::Bool()));

TEST_P(GatheredBF16, DotsAndSumsEqualLoopsOverRoundedNumbers) {
  const auto [heads, dim, is_shared] = GetParam();
  constexpr int64_t kRows = 50;
  const int64_t row_heads = is_shared ? 1 : heads;
  const TestMatrix x(2, heads * dim, 1, 3, 1), rows(kRows, row_heads * dim, 2, 1, 2);
  HeadRows x_heads, row_values;
  x_heads.assign(x.view, heads);
  row_values.assign(rows.view, row_heads);
  for (int64_t count : {1, 2, 15, 16, 17, 40}) {
    const auto list = some_keys(count, kRows);
    PaddedKeys keys;
    keys.assign(list);
    LineBuffer dots_buffer, weights_buffer;
    auto* const dots = dots_buffer.reserve<float>(heads * keys.padded());
    for (int64_t h = 0; h < heads; ++h)
      gathered_dots(x_heads, 1, row_values, h, keys.all(), dots + h * keys.padded());
    auto* const weights = weights_buffer.reserve<uint32_t>(heads * keys.padded() / 2);
    auto* const weight16 = reinterpret_cast<uint16_t*>(weights);
    const auto weight_of = [](int64_t h, int64_t i) {
      return 0.25f * static_cast<float>(h + 1) - 0.125f * static_cast<float>(i % 7);
    };
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < keys.padded(); ++i)
        weight16[h * keys.padded() + i] =
            static_cast<uint16_t>(i < count ? std::bit_cast<uint32_t>(weight_of(h, i)) >> 16 : 0u);
    std::vector<float> factor(heads), sums(heads * dim);
    std::iota(factor.begin(), factor.end(), 2.0f);
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < keys.padded(); i += 32)
        add_gathered_sum(weights + (h * keys.padded() + i) / 2, factor[h], row_values, h,
                         keys.slice(i, 32), sums.data() + h * dim);
      const auto row = [&](int64_t i) { return rows.view[list[i]] + (is_shared ? 0 : h) * dim; };
      for (int64_t i = 0; i < count; ++i) {
        double dot = 0;
        for (int64_t d = 0; d < dim; ++d)
          dot += static_cast<double>(bf16(x.view[1][h * dim + d])) * bf16(row(i)[d]);
        EXPECT_NEAR(dots[h * keys.padded() + i], dot, 1e-5 * (1 + std::sqrt(dim)));
      }
      for (int64_t d = 0; d < dim; ++d) {
        double sum = 0;
        for (int64_t i = 0; i < count; ++i) sum += weight_of(h, i) * bf16(row(i)[d]);
        EXPECT_NEAR(sums[h * dim + d], factor[h] * sum, 1e-5 * factor[h] * (1 + std::abs(sum)));
      }
    }
  }
}

}  // namespace
}  // namespace fathom::kernels
