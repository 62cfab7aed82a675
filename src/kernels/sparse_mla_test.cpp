#include "kernels/sparse_mla.h"

#include <gtest/gtest.h>

#include <numeric>

#include "base/parallel.h"
#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

// Odd numbers of heads, keys and columns; one part and several; every format.
TEST(SparseMla, EqualsReferenceDenseAndGathered) {
  struct Shape {
    int64_t heads, latent, rope, num_rows;
  };
  for (const auto& [heads, latent, rope, s] :
       {Shape{6, 40, 8, 150}, {1, 7, 4, 3}, {3, 33, 5, 97}, {5, 128, 16, 1300}}) {
    const TestMatrix q(heads, latent + rope, 1), rows(s, latent + rope, 2, 1, 1);
    std::vector<int32_t> keys;
    for (int32_t i = 0; i < s; i += 2) keys.push_back(i);
    for (const RowFormat format : {RowFormat::kF32, RowFormat::kBF16, RowFormat::kFP8}) {
      const TestPages pages(rows.view, {format, latent, rope});
      for (const bool is_gathered : {false, true}) {
        TestMatrix out(heads, latent, 3), expected(heads, latent, 4);
        SparseMla io{q.view,
                     pages.rows,
                     is_gathered ? keys.data() : nullptr,
                     is_gathered ? static_cast<int64_t>(keys.size()) : s,
                     0.2f,
                     out.view};
        sparse_mla(io);
        io.out_HC = expected.view;
        reference::sparse_mla(io);
        EXPECT_LE(max_difference(out.view, expected.view), 2e-5) << s << " " << is_gathered;
      }
    }
  }
}

TEST(SparseMla, SelectingEveryKeyEqualsDenseBitForBitOnAnyThreads) {
  const int64_t s = 1700;
  const TestMatrix q(4, 24, 1), rows(s, 24, 2);
  const TestPages pages(rows.view, {RowFormat::kFP8, 16, 8});
  std::vector<int32_t> all(s);
  std::iota(all.begin(), all.end(), 0);
  TestMatrix dense(4, 16, 3), gathered(4, 16, 4);
  const int threads = base::num_threads();
  base::set_num_threads(1);
  sparse_mla({q.view, pages.rows, nullptr, s, 0.2f, dense.view});
  for (const int num_threads : {1, 2, 3}) {
    base::set_num_threads(num_threads);
    sparse_mla({q.view, pages.rows, all.data(), s, 0.2f, gathered.view});
    EXPECT_EQ(max_difference(dense.view, gathered.view), 0.0);
  }
  base::set_num_threads(threads);
}

TEST(SparseMla, NoKeysGiveZeros) {
  const TestMatrix q(2, 12, 1), rows(1, 12, 2);
  const TestPages pages(rows.view, {RowFormat::kF32, 8, 4});
  TestMatrix out(2, 8, 3);
  const int32_t none = 0;
  sparse_mla({q.view, pages.rows, &none, 0, 1, out.view});
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t c = 0; c < 8; ++c) EXPECT_EQ(out.view[h][c], 0.0f);
}

// Scores far apart, in whatever order the blocks come; f32 scores of 3000 are 2e-4 apart.
TEST(SparseMla, SurvivesLargeScores) {
  const int64_t s = 300;
  TestMatrix q(1, 9, 1), rows(s, 9, 2);
  for (int64_t i = 0; i < s; ++i) rows.view[i][8] = static_cast<float>(i % 2 ? 3000 - i : i * 10);
  q.view[0][8] = 1;
  const TestPages pages(rows.view, {RowFormat::kF32, 8, 1});
  TestMatrix out(1, 8, 3), expected(1, 8, 4);
  SparseMla io{q.view, pages.rows, nullptr, s, 1, out.view};
  sparse_mla(io);
  io.out_HC = expected.view;
  reference::sparse_mla(io);
  EXPECT_LE(max_difference(out.view, expected.view), 1e-3);
}

}  // namespace
}  // namespace fathom::kernels
