#include "kernels/gathered_rows.h"

#include <gtest/gtest.h>

#include "kernels/fp8.h"
#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

std::vector<int32_t> random_index(int64_t count, int64_t rows, uint64_t seed) {
  base::Random random(seed);
  std::vector<int32_t> index(count);
  for (auto& i : index) i = static_cast<int32_t>(random.below(static_cast<uint64_t>(rows)));
  return index;
}

TEST(GatheredRows, EqualPlainLoopsOverOddSizes) {
  for (int64_t dim : {1, 7, 8, 33, 48, 64, 75}) {
    for (int64_t count : {1, 2, 8, 13, 40}) {
      const TestMatrix rows(20, dim, 1, 1, 3), x(1, dim, 2, 3), weight(1, count, 3);
      const auto index = random_index(count, 20, 5);
      std::vector<float> dots(count), sum(dim, -1.0f);
      gathered_dots(x.view[0], rows.view, index, dots.data());
      add_gathered_sum(weight.view[0], 0.5f, rows.view, index, sum.data());
      std::vector<double> expected_sum(dim, -1.0);
      for (int64_t i = 0; i < count; ++i) {
        double dot = 0;
        for (int64_t d = 0; d < dim; ++d) {
          dot += static_cast<double>(x.view[0][d]) * rows.view[index[i]][d];
          expected_sum[d] += 0.5 * weight.view[0][i] * rows.view[index[i]][d];
        }
        EXPECT_NEAR(dots[i], dot, 1e-5 * dim) << dim << " " << count;
      }
      for (int64_t d = 0; d < dim; ++d) EXPECT_NEAR(sum[d], expected_sum[d], 1e-4) << dim;
    }
  }
}

TEST(GatheredRows, HeadsArePaddedWithZeros) {
  for (const int64_t dim : {3, 8, 20}) {
    TestMatrix x(70, 2 * dim, 1, 1, 3);
    for (const bool round : {false, true}) {
      HeadRowsF32 rows;
      rows.assign(x.view, 2, round);
      for (int64_t h = 0; h < 2; ++h) {
        const View2<const float> head = rows.head(h);
        ASSERT_EQ(head.cols % 8, 0);
        for (int64_t i = 0; i < 70; ++i)
          for (int64_t d = 0; d < head.cols; ++d) {
            const float value = d < dim ? x.view[i][h * dim + d] : 0.0f;
            ASSERT_EQ(head[i][d], round ? from_bf16(to_bf16(value)) : value);
          }
      }
    }
  }
}

}  // namespace
}  // namespace fathom::kernels
