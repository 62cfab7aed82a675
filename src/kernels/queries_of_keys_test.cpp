#include "kernels/queries_of_keys.h"

#include <gtest/gtest.h>

#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

// Columns of one, of some and of more vectors than stay in registers at once; a query without keys,
// lists of different lengths, blocks in the middle.
TEST(QueriesOfKeys, AddWhatLoopsOverQueriesAdd) {
  constexpr int64_t kKeys = 50, kQueries = 13;
  std::vector<std::vector<int32_t>> lists_T(kQueries);
  base::Random random(3);
  for (int64_t t = 0; t < kQueries; ++t)
    for (int32_t s = 0; s < kKeys && t != 5; ++s)
      if (random.below(t + 2) == 0) lists_T[t].push_back(s);
  const TestSelection selection(lists_T);
  for (const int64_t dim : {1, 7, 8, 20, 48, 64, 67, 130}) {
    for (const auto& [begin, end] : {std::pair(0, 13), std::pair(4, 9), std::pair(5, 6)}) {
      QueriesOfKeys queries;
      queries.assign(selection.view(), begin, end);
      const TestMatrix x(end - begin, (dim + 7) / 8 * 8, 1, 1, 2);
      TestMatrix rows(kKeys, dim, 2, 2, 1);
      std::vector<double> expected(rows.storage.begin(), rows.storage.end());
      std::vector<float> weights((end - begin) * queries.weights_stride(), NAN);
      for (int64_t q = 0; q < end - begin; ++q) {
        float* weight = weights.data() + q * queries.weights_stride();
        for (const int32_t s : lists_T[begin + q]) {
          *weight = static_cast<float>(random.normal());
          for (int64_t d = 0; d < dim; ++d)
            expected[rows.view[s] + d - rows.storage.data()] +=
                static_cast<double>(*weight) * x.view[q][d];
          ++weight;
        }
      }
      queries.add_weighted(weights.data(), x.view, rows.view);
      for (size_t i = 0; i < expected.size(); ++i)  // between rows too
        ASSERT_NEAR(rows.storage[i], expected[i], 1e-5) << dim << " " << begin;
    }
  }
}

}  // namespace
}  // namespace fathom::kernels
