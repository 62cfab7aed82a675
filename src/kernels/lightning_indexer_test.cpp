#include "kernels/lightning_indexer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <numeric>

#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

TEST(IndexScores, EqualReferenceOverOddShapes) {
  for (auto [heads, dim] : {std::pair<int64_t, int64_t>{1, 5}, {4, 64}, {6, 33}, {16, 128}}) {
    for (auto [t, s] : {std::pair<int64_t, int64_t>{1, 1}, {1, 77}, {9, 9}, {33, 70}, {20, 50}}) {
      const TestMatrix q(t, heads * dim, 1, 1, 3), w(t, heads, 2), k(s, dim, 3, 2, 1),
          scale(1, s, 4);
      TestMatrix fast(t, s, 5), slow(t, s, 6);
      IndexScores io{q.view, w.view, k.view, scale.view.data, fast.view};
      index_scores(io);
      io.scores_TS = slow.view;
      reference::index_scores(io);
      EXPECT_LE(max_difference(fast.view, slow.view), 1e-5 * static_cast<double>(heads * dim));
    }
  }
}

TEST(IndexScores, LaterKeysAreMinusInfinity) {
  const TestMatrix q(3, 8, 1), w(3, 1, 2), k(5, 8, 3);
  TestMatrix scores(3, 5, 4);
  index_scores({q.view, w.view, k.view, nullptr, scores.view});
  for (int64_t t = 0; t < 3; ++t)
    for (int64_t s = 0; s < 5; ++s)
      EXPECT_EQ(std::isinf(scores.view[t][s]), s > 2 + t) << t << " " << s;
}

TEST(TopK, IsExactAscendingAndPrefersTheLowerIndexInTies) {
  std::vector<int32_t> indices;
  const std::vector<float> scores = {1, 5, 5, 0, 5, 2};
  top_k(scores, 2, indices);
  EXPECT_EQ(indices, (std::vector<int32_t>{1, 2}));
  top_k(scores, 4, indices);
  EXPECT_EQ(indices, (std::vector<int32_t>{1, 2, 4, 5}));
  top_k(scores, 9, indices);
  EXPECT_EQ(indices.size(), 6u);
}

TEST(TopK, EqualsAStableSort) {
  base::Random random(5);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<float> scores(1 + random.below(300));
    for (float& x : scores) x = static_cast<float>(random.below(20));  // many ties
    const auto k = static_cast<int64_t>(1 + random.below(scores.size()));
    std::vector<int32_t> order(scores.size()), indices;
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    order.resize(k);
    std::sort(order.begin(), order.end());
    top_k(scores, k, indices);
    EXPECT_EQ(indices, order);
  }
}

// Random bit patterns of every sign and exponent, and a few values that share most of theirs.
TEST(TopK, SelectsByEveryBit) {
  base::Random random(6);
  for (int trial = 0; trial < 50; ++trial) {
    std::vector<float> scores(3000);
    const bool is_close = trial % 2;
    for (float& x : scores) {
      do {
        x = std::bit_cast<float>(is_close ? 0xc1234400u + static_cast<uint32_t>(random.below(256))
                                          : static_cast<uint32_t>(random.below(1ull << 32)));
      } while (x != x);
    }
    scores[7] = 0.0f, scores[3] = -0.0f;
    std::vector<int32_t> order(scores.size()), indices;
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    for (const int64_t k : {1, 2, 1499, 1500, 1501, 2999}) {
      std::vector<int32_t> expected(order.begin(), order.begin() + k);
      std::sort(expected.begin(), expected.end());
      top_k(scores, k, indices);
      ASSERT_EQ(indices, expected) << trial << " " << k;
    }
  }
}

TEST(TopK, NanNeverDisplacesANumber) {
  std::vector<int32_t> indices;
  const std::vector<float> scores = {NAN, -5, NAN, 1};
  top_k(scores, 2, indices);
  EXPECT_EQ(indices, (std::vector<int32_t>{1, 3}));
}

}  // namespace
}  // namespace fathom::kernels
