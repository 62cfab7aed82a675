#include "engine/prefix_cache.h"

#include <gtest/gtest.h>

namespace fathom::engine {
namespace {

using Page = PrefixCache::Page;

// `length` tokens that count up from `first`.
std::vector<int32_t> tokens_from(int32_t first, int64_t length) {
  std::vector<int32_t> tokens(length);
  for (int64_t i = 0; i < length; ++i) tokens[i] = first + static_cast<int32_t>(i);
  return tokens;
}

std::vector<Page> new_pages(int64_t count) {
  std::vector<Page> pages;
  for (int64_t i = 0; i < count; ++i) pages.push_back(std::make_shared<model::CachePage>());
  return pages;
}

TEST(PrefixCache, FindsTheLongestBeginningAndLeavesATokenToCompute) {
  PrefixCache cache;
  const auto tokens = tokens_from(0, 200);
  const auto pages = new_pages(4);
  cache.insert(tokens, pages);
  EXPECT_EQ(cache.num_pages(), 3);  // 200 tokens fill three pages
  EXPECT_EQ(cache.find(tokens), std::vector<Page>(pages.begin(), pages.begin() + 3));
  EXPECT_EQ(cache.find(tokens_from(0, 193)).size(), 3u);
  EXPECT_EQ(cache.find(tokens_from(0, 192)).size(), 2u);
  EXPECT_EQ(cache.find(tokens_from(0, 64)).size(), 0u);
  auto other = tokens_from(0, 200);
  other[70] = 9;
  EXPECT_EQ(cache.find(other).size(), 1u);
  EXPECT_EQ(cache.find(tokens_from(1, 200)).size(), 0u);
}

TEST(PrefixCache, KnownPagesStayAndBranchesShareTheirBeginning) {
  PrefixCache cache;
  auto tokens = tokens_from(0, 128), branch = tokens;
  branch[100] = 7;
  const auto pages = new_pages(2), again = new_pages(2);
  cache.insert(tokens, pages);
  cache.insert(branch, again);
  EXPECT_EQ(cache.num_pages(), 3);
  branch.push_back(0);
  EXPECT_EQ(cache.find(branch), (std::vector<Page>{pages[0], again[1]}));
}

TEST(PrefixCache, EvictsTheLongestUnusedEndsFirstAndNothingInUse) {
  PrefixCache cache;
  const auto old_tokens = tokens_from(0, 129), new_tokens = tokens_from(1000, 129);
  cache.insert(old_tokens, new_pages(2));
  cache.insert(new_tokens, new_pages(2));
  EXPECT_EQ(cache.num_idle_pages(), 4);
  cache.evict(3);
  EXPECT_EQ(cache.find(old_tokens).size(), 1u);
  EXPECT_EQ(cache.find(new_tokens).size(), 2u);
  const auto held = cache.find(old_tokens);
  cache.evict(0);
  EXPECT_EQ(cache.num_pages(), 1);
  EXPECT_EQ(cache.find(old_tokens), held);
}

// However many pages go at once, and though the older sequence's beginning is no end at first.
TEST(PrefixCache, EvictsAWholeOldSequenceBeforeAnyPageOfANewOne) {
  PrefixCache cache;
  const auto old_tokens = tokens_from(0, 321), new_tokens = tokens_from(1000, 321);
  cache.insert(old_tokens, new_pages(5));
  cache.insert(new_tokens, new_pages(5));
  cache.evict(6);
  EXPECT_EQ(cache.find(old_tokens).size(), 1u);
  EXPECT_EQ(cache.find(new_tokens).size(), 5u);
  cache.evict(3);
  EXPECT_EQ(cache.find(old_tokens).size(), 0u);
  EXPECT_EQ(cache.find(new_tokens).size(), 3u);
  cache.evict(0);
  EXPECT_EQ(cache.num_pages(), 0);
}

}  // namespace
}  // namespace fathom::engine
