#include "kernels/key_union.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/random.h"
#include "kernels/bf16_dot.h"
#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

TEST(KeyUnion, HoldsEveryKeyOnceAndKnowsWhoseItIs) {
  if (!has_bf16_dot()) GTEST_SKIP() << "the processor has no bf16 dot products";
  base::Random random(5);
  std::vector<std::vector<int32_t>> lists = {{}, {0}, {3, 15, 16, 17, 4000}, {31, 32}, {}};
  for (const int64_t span : {20, 700, 5000}) {
    for (int t = 0; t < 20; ++t) {
      std::set<int32_t> keys;
      for (int64_t i = 0; i < span / 2; ++i) keys.insert(static_cast<int32_t>(random.below(span)));
      lists.emplace_back(keys.begin(), keys.end());
    }
  }
  const TestSelection selection(lists);
  KeyUnion keys;  // one for all: nothing may stay of the one before
  for (int64_t begin = 0; begin < std::ssize(lists); ++begin)
    for (const int64_t size : {int64_t{1}, int64_t{2}, int64_t{17}, kUnionQueries}) {
      const int64_t end = std::min(begin + size, std::ssize(lists));
      keys.assign(selection.view(), begin, end);
      ASSERT_EQ(keys.begin(), begin);
      ASSERT_EQ(keys.size(), end - begin);
      std::set<int32_t> all;
      for (int64_t t = begin; t < end; ++t) all.insert(lists[t].begin(), lists[t].end());
      const std::vector<int32_t> expected(all.begin(), all.end());
      ASSERT_EQ(std::vector<int32_t>(keys.keys().begin(), keys.keys().end()), expected);
      ASSERT_EQ(std::ssize(keys.padded_keys()), (std::ssize(expected) + 31) / 32 * 32);
      for (int64_t i = 0; i < std::ssize(keys.padded_keys()); ++i)
        for (int64_t q = 0; q < kUnionQueries; ++q) {
          const bool is_own = i < std::ssize(expected) && q < keys.size() &&
                              std::ranges::binary_search(lists[begin + q], expected[i]);
          ASSERT_EQ(keys.selectors()[i] >> q & 1, is_own ? 1u : 0u)
              << begin << " " << i << " " << q;
        }
      for (int64_t i = std::ssize(expected); i < std::ssize(keys.padded_keys()); ++i)
        ASSERT_EQ(keys.padded_keys()[i], expected.back());
    }
}

}  // namespace
}  // namespace fathom::kernels
