#include "kernels/top_k.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/random.h"

namespace fathom::kernels {
namespace {

TEST(DsaTraining, T11TopKPrefersTheLowerIndexInTies) {
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

// Pieces of any length, in one stream or in two that are joined, of scores with many ties.
TEST(TopKStream, EqualsTopKOfTheWhole) {
  base::Random random(7);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<float> scores(1 + random.below(2000));
    const uint64_t num_values = trial % 2 ? 20 : 1 << 20;
    for (float& x : scores) x = static_cast<float>(random.below(num_values));
    if (trial % 5 == 0) std::sort(scores.begin(), scores.end());  // every score enters
    const auto k = static_cast<int64_t>(1 + random.below(scores.size() + 10));
    const size_t half = random.below(scores.size() + 1);
    TopKStream streams[2];
    for (TopKStream& stream : streams) stream.reset(k);
    for (size_t i = 0; i < scores.size();) {
      const bool is_second = i >= half;
      const size_t end = is_second ? scores.size() : half;
      const size_t count = std::min<size_t>(1 + random.below(40), end - i);
      streams[is_second].add({scores.data() + i, count}, static_cast<int32_t>(i));
      i += count;
    }
    streams[0].add(streams[1]);
    std::vector<int32_t> expected, indices;
    top_k(scores, k, expected);
    streams[0].finish(indices);
    ASSERT_EQ(indices, expected) << trial;
  }
}

// Any bits: NaNs, infinities, zeros of both signs, few numbers above the floor and many equal to
// it.
TEST(TopKStream, EqualsTopKOfAnyBits) {
  base::Random random(8);
  constexpr float kSpecial[] = {NAN, -INFINITY, INFINITY, 0.0f, -0.0f, -1.0f, 1.0f};
  for (int trial = 0; trial < 100; ++trial) {
    std::vector<float> scores(5000);
    for (float& x : scores) {
      const auto bits = static_cast<uint32_t>(random.below(1ull << 32));
      x = random.below(4) < static_cast<uint64_t>(trial % 4) ? std::bit_cast<float>(bits)
                                                             : kSpecial[random.below(7)];
    }
    const auto k = static_cast<int64_t>(1 + random.below(300));
    TopKStream stream;
    stream.reset(k);
    const size_t piece = 1 + random.below(100);
    for (size_t i = 0; i < scores.size(); i += piece)
      stream.add({scores.data() + i, std::min(piece, scores.size() - i)}, static_cast<int32_t>(i));
    std::vector<int32_t> expected, indices;
    top_k(scores, k, expected);
    stream.finish(indices);
    ASSERT_EQ(indices, expected) << trial;
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
