#include "kernels/lightning_indexer.h"

#include <gtest/gtest.h>

#include "base/parallel.h"
#include "kernels/fp8.h"
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
        const TestIndexKeys pages(k.view, {format, dim});
        TestMatrix fast(t, s, 5), slow(t, s, 6);
        const IndexerInput input{q.view, w.view, pages.keys};
        index_scores(input, fast.view);
        reference::index_scores(input, slow.view);
        EXPECT_LE(max_difference(fast.view, slow.view), 1e-5 * static_cast<double>(heads * dim));
      }
    }
  }
}

// Heads as deploy mode makes them: e4m3 values without their scale.
void round_to_e4m3(View2<float> q) {
  for (int64_t t = 0; t < q.rows; ++t)
    for (int64_t x = 0; x < q.cols; ++x) q[t][x] = from_e4m3(to_e4m3(q[t][x] * 100));
}

// The keys' stored values in a cache of f32, which always takes the f32 kernel.
struct WidenedKeys {
  TestMatrix values;
  TestIndexKeys pages;
  explicit WidenedKeys(const IndexKeyPages& keys)
      : values(keys.num_keys, keys.layout.dim, 1),
        pages(widened(keys), {RowFormat::kF32, keys.layout.dim}) {}

  View2<const float> widened(const IndexKeyPages& keys) {
    for (int64_t s = 0; s < keys.num_keys; ++s)
      widen_index_key(keys.layout, keys.page_of(s), s % kPageRows, values.view[s]);
    return values.view;
  }
};

// Both kernels where the processor has both. Scores of e4m3 heads against FP8 keys: products are
// multiples of 2^-18 * the key's scale, so sums differ in their last bits only.
TEST(IndexScores, OfExactHeadsEqualTheF32KernelAndTheReference) {
  for (const RowFormat format : {RowFormat::kBF16, RowFormat::kFP8}) {
    for (auto [heads, dim] : {std::pair<int64_t, int64_t>{1, 5},
                              {3, 64},
                              {4, 96},
                              {6, 33},
                              {8, 32},
                              {13, 100},
                              {17, 65},
                              {20, 128},
                              {64, 128}}) {
      for (auto [t, s] :
           {std::pair<int64_t, int64_t>{1, 1}, {1, 77}, {9, 9}, {33, 70}, {20, 129}}) {
        const TestMatrix q(t, heads * dim, 1, 1, 3), w(t, heads, 2), k(s, dim, 3, 2, 1);
        round_to_e4m3(q.view);
        const TestIndexKeys pages(k.view, {format, dim});
        const WidenedKeys widened(pages.keys);
        TestMatrix paired(t, s, 5), f32(t, s, 6), slow(t, s, 7);
        index_scores({q.view, w.view, pages.keys}, paired.view);
        index_scores({q.view, w.view, widened.pages.keys}, f32.view);
        reference::index_scores({q.view, w.view, pages.keys}, slow.view);
        const double tolerance = 1e-5 * 100 * static_cast<double>(heads * dim);
        EXPECT_LE(max_difference(paired.view, slow.view), tolerance);
        EXPECT_LE(max_difference(paired.view, f32.view), tolerance);
      }
    }
  }
}

// A query's scores have the same bits alone and among queries that take the other kernel, whatever
// kernel the number of heads asks for.
TEST(IndexScores, DoNotDependOnTheOtherQueries) {
  const int64_t t = 40, s = 300;
  for (auto [heads, dim] : {std::pair<int64_t, int64_t>{3, 64}, {5, 64}, {9, 33}, {20, 96}}) {
    const TestMatrix q(t, heads * dim, 1), w(t, heads, 2), k(s, dim, 3);
    for (int64_t i = 0; i < t; i += 3) round_to_e4m3(q.view.slice_rows(i, i + 1));
    for (const RowFormat format : kFormats) {
      const TestIndexKeys pages(k.view, {format, dim});
      TestMatrix together(t, s, 4), alone(1, s, 5);
      index_scores({q.view, w.view, pages.keys}, together.view);
      for (int64_t i = 0; i < t; ++i) {
        const IndexKeyPages visible{pages.keys.layout, pages.keys.pages, s - t + i + 1};
        index_scores({q.view.slice_rows(i, i + 1), w.view.slice_rows(i, i + 1), visible},
                     {alone.view.data, 1, visible.num_keys});
        for (int64_t j = 0; j < visible.num_keys; ++j)
          ASSERT_EQ(together.view[i][j], alone.view[0][j]) << heads << " " << i << " " << j;
      }
    }
  }
}

// What a thread's scratch holds from other keys, longer ones and broken, is not seen.
TEST(IndexScores, DoNotDependOnWhatWasScoredBefore) {
  for (const int64_t heads : {1, 5, 8})
    for (const RowFormat format : {RowFormat::kBF16, RowFormat::kFP8}) {
      const auto score = [&](int64_t dim, float value) {
        TestMatrix q(1, heads * dim, 1), w(1, heads, 2), k(1, dim, 3), scores(1, 1, 4);
        std::fill(q.storage.begin(), q.storage.end(), 1.0f);
        std::fill(w.storage.begin(), w.storage.end(), 1.0f);
        std::fill(k.storage.begin(), k.storage.end(), value);
        const TestIndexKeys pages(k.view, {format, dim});
        index_scores({q.view, w.view, pages.keys}, scores.view);
        return scores.view[0][0];
      };
      score(128, format == RowFormat::kBF16 ? INFINITY : NAN);
      for (const int64_t dim : {32, 65, 96})
        ASSERT_FLOAT_EQ(score(dim, 1.0f), static_cast<float>(heads * dim)) << heads << " " << dim;
    }
}

TEST(IndexScores, ReadNothingBehindTheirOperands) {
  for (const RowFormat format : kFormats)
    for (auto [heads, dim] :
         {std::pair<int64_t, int64_t>{1, 5}, {4, 64}, {4, 96}, {8, 32}, {17, 65}, {64, 128}})
      for (auto [t, s] : {std::pair<int64_t, int64_t>{1, 1}, {1, 64}, {1, 77}, {5, 96}, {9, 161}}) {
        const TestMatrix q(t, heads * dim, 1), w(t, heads, 2), k(s, dim, 3);
        round_to_e4m3(q.view);
        const TestIndexKeys pages(k.view, {format, dim});
        TestMatrix expected(t, s, 4), scores(t, s, 5);
        index_scores({q.view, w.view, pages.keys}, expected.view);
        const GuardedIndexKeys guarded(pages.keys);
        const GuardedCopy heads_copy(q.storage.data(), q.storage.size() * sizeof(float));
        const GuardedCopy weights(w.storage.data(), w.storage.size() * sizeof(float));
        index_scores({{heads_copy.as<float>(), t, heads * dim, heads * dim},
                      {weights.as<float>(), t, heads, heads},
                      guarded.keys},
                     scores.view);
        for (int64_t i = 0; i < t; ++i)
          for (int64_t j = 0; j < s - t + i + 1; ++j)
            ASSERT_EQ(scores.view[i][j], expected.view[i][j]) << heads << " " << dim << " " << s;
      }
}

TEST(IndexScores, LaterKeysAreMinusInfinity) {
  const TestMatrix q(3, 8, 1), w(3, 1, 2), k(5, 8, 3);
  const TestIndexKeys pages(k.view, {RowFormat::kF32, 8});
  TestMatrix scores(3, 5, 4);
  index_scores({q.view, w.view, pages.keys}, scores.view);
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
  const TestIndexKeys pages(k.view, {RowFormat::kBF16, dim});
  const int threads = base::num_threads();
  for (const int64_t t : {1, 3, 40}) {
    TestMatrix q(t, heads * dim, 1), w(t, heads, 2), scores(t, s, 5);
    for (int64_t i = 0; i < t; ++i)
      for (int64_t x = 0; x < heads * dim; ++x) q.view[i][x] = std::round(q.view[i][x]);
    const IndexerInput input{q.view, w.view, pages.keys};
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

// What serving does: e4m3 heads against FP8 keys, chunks of any size, any threads; and equal keys.
class SelectKeysOf : public testing::TestWithParam<int64_t> {};
TEST_P(SelectKeysOf, ExactHeadsDoNotDependOnChunksOrThreads) {
  const int64_t t = 21, heads = GetParam(), dim = 128, s = 7001, top = 500;
  const TestMatrix q(t, heads * dim, 1), w(t, heads, 2), k(s, dim, 3);
  round_to_e4m3(q.view);
  for (int64_t i = 3000; i < s; ++i) std::copy_n(k.view[i - 3000], dim, k.view[i]);
  const TestIndexKeys pages(k.view, {RowFormat::kFP8, dim});
  TestMatrix scores(t, s, 4);
  index_scores({q.view, w.view, pages.keys}, scores.view);
  const int threads = base::num_threads();
  for (const int64_t chunk : {1, 4, 21}) {
    base::set_num_threads(chunk == 4 ? 1 : 3);
    for (int64_t begin = 0; begin < t; begin += chunk) {
      const int64_t end = std::min(begin + chunk, t);
      std::vector<std::vector<int32_t>> selected(end - begin);
      select_keys({q.view.slice_rows(begin, end),
                   w.view.slice_rows(begin, end),
                   {pages.keys.layout, pages.keys.pages, s - t + end}},
                  top, selected);
      for (int64_t i = begin; i < end; ++i) {
        std::vector<int32_t> expected;
        top_k({scores.view[i], static_cast<size_t>(s - t + i + 1)}, top, expected);
        ASSERT_EQ(selected[i - begin], expected) << chunk << " " << i;
      }
    }
  }
  base::set_num_threads(threads);
}
INSTANTIATE_TEST_SUITE_P(Heads, SelectKeysOf, testing::Values(3, 5, 16));

}  // namespace
}  // namespace fathom::kernels
