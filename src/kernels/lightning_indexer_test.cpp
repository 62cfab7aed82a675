#include "kernels/lightning_indexer.h"

#include <gtest/gtest.h>

#include "base/parallel.h"
#include "kernels/test_data.h"
#include "kernels/top_k.h"

namespace fathom::kernels {
namespace {

constexpr RowFormat kFormats[] = {RowFormat::kF32, RowFormat::kBF16, RowFormat::kFP8};

TEST(IndexScores, EqualReferenceOverOddShapesAndFormats) {
  for (const RowFormat format : kFormats) {
    for (auto [heads, dim] : {std::pair<int64_t, int64_t>{1, 5}, {4, 64}, {6, 33}, {16, 128}}) {
      for (auto [t, s] : {std::pair<int64_t, int64_t>{1, 1}, {1, 77}, {9, 9}, {33, 70}, {20, 50}}) {
        const TestMatrix q(t, heads * dim, 1, 1, 3), w(t, heads, 2), k(s, dim, 3, 2, 1);
        const TestPages pages(k.view, {format, dim, 0});
        TestMatrix fast(t, s, 5), slow(t, s, 6);
        const IndexerInput input{q.view, w.view, pages.rows};
        index_scores(input, fast.view);
        reference::index_scores(input, slow.view);
        EXPECT_LE(max_difference(fast.view, slow.view), 1e-5 * static_cast<double>(heads * dim));
      }
    }
  }
}

TEST(IndexScores, LaterKeysAreMinusInfinity) {
  const TestMatrix q(3, 8, 1), w(3, 1, 2), k(5, 8, 3);
  const TestPages pages(k.view, {RowFormat::kF32, 8, 0});
  TestMatrix scores(3, 5, 4);
  index_scores({q.view, w.view, pages.rows}, scores.view);
  for (int64_t t = 0; t < 3; ++t)
    for (int64_t s = 0; s < 5; ++s)
      EXPECT_EQ(std::isinf(scores.view[t][s]), s > 2 + t) << t << " " << s;
}

// One query and many, few keys and enough for several threads to share, with ties in the scores.
TEST(SelectKeys, IsTopKOfTheScoresForAnyNumberOfThreads) {
  const int64_t heads = 2, dim = 8, s = 9000;
  TestMatrix k(s, dim, 3);
  for (int64_t i = 0; i < s; ++i)
    for (int64_t x = 0; x < dim; ++x) k.view[i][x] = std::round(k.view[i][x]);
  const TestPages pages(k.view, {RowFormat::kBF16, dim, 0});
  const int threads = base::num_threads();
  for (const int64_t t : {1, 3, 40}) {
    TestMatrix q(t, heads * dim, 1), w(t, heads, 2), scores(t, s, 5);
    for (int64_t i = 0; i < t; ++i)
      for (int64_t x = 0; x < heads * dim; ++x) q.view[i][x] = std::round(q.view[i][x]);
    const IndexerInput input{q.view, w.view, pages.rows};
    index_scores(input, scores.view);
    for (const int64_t top : {1, 100, 2048, 9000, 10000}) {
      for (const int num_threads : {1, 2, 3}) {
        base::set_num_threads(num_threads);
        std::vector<std::vector<int32_t>> selected(t);
        select_keys(input, top, selected);
        for (int64_t i = 0; i < t; ++i) {
          std::vector<int32_t> expected;
          top_k({scores.view[i], static_cast<size_t>(s - t + i + 1)}, top, expected);
          ASSERT_EQ(selected[i], expected) << t << " " << top << " " << num_threads;
        }
      }
    }
  }
  base::set_num_threads(threads);
}

}  // namespace
}  // namespace fathom::kernels
