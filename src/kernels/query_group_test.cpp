#include "kernels/query_group.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/random.h"
#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

// Every list that a query of the group chose, read back from the group's.
std::vector<int32_t> own_keys(const QueryGroup& group, int64_t q) {
  std::vector<int32_t> keys;
  for (size_t i = 0; i < group.keys().size(); ++i)
    if (group.is_selected(q)[i / 16] >> i % 16 & 1) keys.push_back(group.keys()[i]);
  return keys;
}

TEST(QueryGroup, HoldsEveryKeyOnceAndKnowsWhoseItIs) {
  if (!has_bf16_dot()) GTEST_SKIP() << "the processor has no bf16 dot products";
  base::Random random(5);
  std::vector<std::vector<int32_t>> lists = {{}, {0}, {3, 63, 64, 65, 4000}, {64}, {}};
  for (const int64_t span : {20, 700, 5000}) {
    for (int t = 0; t < 9; ++t) {
      std::set<int32_t> keys;
      for (int64_t i = 0; i < span / 2; ++i) keys.insert(static_cast<int32_t>(random.below(span)));
      lists.emplace_back(keys.begin(), keys.end());
    }
  }
  const TestSelection selection(lists);
  QueryGroup group;
  for (int64_t begin = 0; begin < std::ssize(lists); ++begin)
    for (int64_t end = begin + 1; end <= std::min(begin + kGroupQueries, std::ssize(lists));
         ++end) {
      group.assign(selection.view(), begin, end);
      std::set<int32_t> all;
      int64_t most_padded = 0;
      for (int64_t q = 0; q < end - begin; ++q) {
        const auto& list = lists[begin + q];
        all.insert(list.begin(), list.end());
        EXPECT_EQ(own_keys(group, q), list);
        most_padded = std::max(most_padded, (std::ssize(list) + 15) / 16 * 16);
      }
      const std::vector<int32_t> expected(all.begin(), all.end());
      EXPECT_EQ(std::vector<int32_t>(group.keys().begin(), group.keys().end()), expected);
      EXPECT_EQ(group.num_padded_keys(), (std::ssize(expected) + 15) / 16 * 16);
      EXPECT_EQ(group.most_padded(), most_padded);
    }
}

}  // namespace
}  // namespace fathom::kernels
