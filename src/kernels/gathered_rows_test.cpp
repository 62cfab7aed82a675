#include "kernels/gathered_rows.h"

#include <gtest/gtest.h>

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
      TestMatrix added(20, dim, 4, 1, 3);
      const TestMatrix before(20, dim, 4, 1, 3);
      const auto index = random_index(count, 20, 5);
      std::vector<float> dots(count), sum(dim, -1.0f);
      gathered_dots(x.view[0], rows.view, index, dots.data());
      gathered_sum(weight.view[0], rows.view, index, sum.data());
      scatter_add(weight.view[0], x.view[0], index, added.view);
      std::vector<double> expected_sum(dim),
          expected_added(before.storage.begin(), before.storage.end());
      for (int64_t i = 0; i < count; ++i) {
        double dot = 0;
        for (int64_t d = 0; d < dim; ++d) {
          dot += static_cast<double>(x.view[0][d]) * rows.view[index[i]][d];
          expected_sum[d] += static_cast<double>(weight.view[0][i]) * rows.view[index[i]][d];
          expected_added[1 + index[i] * (dim + 3) + d] +=
              static_cast<double>(weight.view[0][i]) * x.view[0][d];
        }
        EXPECT_NEAR(dots[i], dot, 1e-5 * dim) << dim << " " << count;
      }
      for (int64_t d = 0; d < dim; ++d) EXPECT_NEAR(sum[d], expected_sum[d], 1e-4) << dim;
      // What lies between the rows stays untouched.
      for (size_t i = 0; i < added.storage.size(); ++i)
        EXPECT_NEAR(added.storage[i], expected_added[i], 1e-4) << dim;
    }
  }
}

}  // namespace
}  // namespace fathom::kernels
