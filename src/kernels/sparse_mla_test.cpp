#include "kernels/sparse_mla.h"

#include <gtest/gtest.h>

#include <numeric>

#include "base/parallel.h"
#include "kernels/bf16_dot.h"
#include "kernels/fp8.h"
#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

void round_queries(View2<float> q) {
  for (int64_t h = 0; h < q.rows; ++h)
    round_to_bf16({q[h], size_t(q.cols)}, {q[h], size_t(q.cols)});
}

// The mean of |value| under io's softmax: reference::sparse_mla over rows [|value| | row], which
// [0 | q] scores as q does.
void mean_magnitudes(const SparseMla& io, View2<float> out_HC) {
  const int64_t dim = io.q_HD.cols, cols = out_HC.cols;
  const TestMatrix q(io.q_HD.rows, cols + dim, 1), rows(io.latent_SD.num_rows, cols + dim, 2);
  for (int64_t h = 0; h < q.view.rows; ++h) {
    std::fill_n(q.view[h], cols, 0.0f);
    std::copy_n(io.q_HD[h], dim, q.view[h] + cols);
  }
  for (int64_t s = 0; s < rows.view.rows; ++s) {
    float* const row = rows.view[s];
    widen_row(io.latent_SD.layout, io.latent_SD[s], row + cols);
    for (int64_t c = 0; c < cols; ++c) row[c] = std::abs(row[cols + c]);
  }
  const TestPages pages(rows.view, {RowFormat::kF32, cols + dim, 0});
  reference::sparse_mla({q.view, pages.rows, io.keys, io.num_keys, io.scale, out_HC});
}

// `io` against the reference, within the tolerances of the header.
void expect_reference(SparseMla io, const char* what) {
  const TestMatrix expected(io.out_HC.rows, io.out_HC.cols, 1),
      magnitude(io.out_HC.rows, io.out_HC.cols, 2);
  const bool is_exact = io.latent_SD.layout.format == RowFormat::kF32 || !has_bf16_dot();
  sparse_mla(io);
  mean_magnitudes(io, magnitude.view);
  const View2<float> out = io.out_HC;
  io.out_HC = expected.view;
  reference::sparse_mla(io);
  double worst = 0;  // share of the tolerance
  for (int64_t h = 0; h < out.rows; ++h)
    for (int64_t c = 0; c < out.cols; ++c) {
      const double tolerance = 2e-5 + (is_exact ? 0 : 0x1p-8 * magnitude.view[h][c]);
      const double difference = std::abs(out[h][c] - expected.view[h][c]);
      worst = std::max(worst, std::isnan(difference) ? INFINITY : difference / tolerance);
    }
  EXPECT_LE(worst, 1.0) << what << " " << io.num_keys;
}

struct Shape {
  int64_t heads, latent, rope, num_rows;
};

TEST(SparseMla, ReadsNothingBehindItsOperands) {
  for (const auto& [heads, latent, rope, s] : {Shape{1, 7, 4, 3},
                                               {6, 128, 16, 97},
                                               {13, 130, 31, 161},
                                               {20, 64, 1, 64},
                                               {17, 512, 64, 70}})
    for (const RowFormat format : {RowFormat::kF32, RowFormat::kBF16, RowFormat::kFP8}) {
      const TestMatrix q(heads, latent + rope, 1), rows(s, latent + rope, 2);
      round_queries(q.view);
      const TestPages pages(rows.view, {format, latent, rope});
      const GuardedPages guarded(pages.rows);
      std::vector<int32_t> keys;  // the last row among them
      for (auto i = static_cast<int32_t>(s - 1) % 2; i < s; i += 2) keys.push_back(i);
      const GuardedCopy q_copy(q.storage.data(), q.storage.size() * sizeof(float));
      const GuardedCopy keys_copy(keys.data(), keys.size() * sizeof(int32_t));
      TestMatrix expected(heads, latent, 3), out(heads, latent, 4);
      const GuardedCopy out_copy(out.storage.data(), out.storage.size() * sizeof(float));
      const View2<float> guarded_out(out_copy.as<float>(), heads, latent, latent);
      for (const bool is_dense : {true, false}) {
        const int64_t count = is_dense ? s : std::ssize(keys);
        sparse_mla(
            {q.view, pages.rows, is_dense ? nullptr : keys.data(), count, 0.1f, expected.view});
        sparse_mla({{q_copy.as<float>(), heads, latent + rope, latent + rope},
                    guarded.rows,
                    is_dense ? nullptr : keys_copy.as<int32_t>(),
                    count,
                    0.1f,
                    guarded_out});
        ASSERT_EQ(max_difference(guarded_out, expected.view), 0.0) << heads << " " << latent;
      }
    }
}

// Odd numbers of heads, keys and columns; one part and several; every format.
TEST(SparseMla, EqualsReferenceDenseAndGathered) {
  for (const auto& [heads, latent, rope, s] : {Shape{6, 40, 8, 150},
                                               {1, 7, 4, 3},
                                               {3, 33, 5, 97},
                                               {5, 128, 16, 1300},
                                               {13, 130, 31, 161},
                                               {20, 64, 1, 64},
                                               {17, 300, 64, 129},
                                               {128, 512, 64, 260}}) {
    const TestMatrix q(heads, latent + rope, 1, 1, 3), rows(s, latent + rope, 2, 1, 1);
    round_queries(q.view);
    std::vector<int32_t> keys;
    for (int32_t i = 0; i < s; i += 2) keys.push_back(i);
    for (const RowFormat format : {RowFormat::kF32, RowFormat::kBF16, RowFormat::kFP8}) {
      const TestPages pages(rows.view, {format, latent, rope});
      for (const float scale : {0.1f, 0.04f}) {
        const TestMatrix out(heads, latent, 3, 1, 5);
        expect_reference({q.view, pages.rows, nullptr, s, scale, out.view}, "dense");
        expect_reference({q.view, pages.rows, keys.data(), std::ssize(keys), scale, out.view},
                         "gathered");
      }
    }
  }
}

// Rows whose groups have scales of their own, far apart, and zeros.
TEST(SparseMla, ReadsEveryScale) {
  const int64_t most_heads = 20, latent = 512, rope = 64, s = 90;
  const TestMatrix q(most_heads, latent + rope, 1), rows(s, latent + rope, 2),
      out(most_heads, latent, 3);
  for (int64_t i = 0; i < s; ++i)
    for (int64_t c = 0; c < latent; ++c)
      rows.view[i][c] *=
          i % 7 == 0 ? 0.0f : std::exp2(static_cast<float>((i + c / 128 * 5) % 23 - 20));
  round_queries(q.view);
  const TestPages pages(rows.view, {RowFormat::kFP8, latent, rope});
  for (auto [heads, scale] : {std::pair{int64_t{3}, 0.1f}, {most_heads, 0.05f}})
    expect_reference(
        {q.view.slice_rows(0, heads), pages.rows, nullptr, s, scale, out.view.slice_rows(0, heads)},
        "scales");
}

// Where the processor has both kernels: FP8 rows against the same values in f32.
TEST(SparseMla, KernelsDifferByTheRoundingOfWeightsOnly) {
  const int64_t heads = 16, latent = 256, rope = 32, s = 2000;
  const TestMatrix q(heads, latent + rope, 1), rows(s, latent + rope, 2),
      widened(s, latent + rope, 3);
  round_queries(q.view);
  const TestPages fp8(rows.view, {RowFormat::kFP8, latent, rope});
  for (int64_t i = 0; i < s; ++i) widen_row(fp8.rows.layout, fp8.rows[i], widened.view[i]);
  const TestPages f32(widened.view, {RowFormat::kF32, latent, rope});
  const TestMatrix out(heads, latent, 4), expected(heads, latent, 5);
  sparse_mla({q.view, fp8.rows, nullptr, s, 0.05f, out.view});
  sparse_mla({q.view, f32.rows, nullptr, s, 0.05f, expected.view});
  double squares = 0;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t c = 0; c < latent; ++c)
      squares += std::pow(out.view[h][c] - expected.view[h][c], 2);
  // Roundings of 2^-9 that do not know each other, under weights of some hundred keys.
  EXPECT_LE(std::sqrt(squares / static_cast<double>(heads * latent)), 3e-4);
}

// Few heads and many, which have kernels of their own.
constexpr int64_t kHeads[] = {2, 20};

TEST(SparseMla, SelectingEveryKeyEqualsDenseBitForBitOnAnyThreads) {
  const int64_t s = 1700;
  const int threads = base::num_threads();
  for (const int64_t heads : kHeads) {
    const TestMatrix q(heads, 24, 1), rows(s, 24, 2);
    const TestPages pages(rows.view, {RowFormat::kFP8, 16, 8});
    std::vector<int32_t> all(s);
    std::iota(all.begin(), all.end(), 0);
    TestMatrix dense(heads, 16, 3), gathered(heads, 16, 4);
    base::set_num_threads(1);
    sparse_mla({q.view, pages.rows, nullptr, s, 0.2f, dense.view});
    for (const int num_threads : {1, 2, 3}) {
      base::set_num_threads(num_threads);
      sparse_mla({q.view, pages.rows, all.data(), s, 0.2f, gathered.view});
      EXPECT_EQ(max_difference(dense.view, gathered.view), 0.0);
    }
  }
  base::set_num_threads(threads);
}

TEST(SparseMla, NoKeysGiveZeros) {
  for (const int64_t heads : kHeads)
    for (const RowFormat format : {RowFormat::kF32, RowFormat::kFP8}) {
      const TestMatrix q(heads, 12, 1), rows(1, 12, 2);
      const TestPages pages(rows.view, {format, 8, 4});
      TestMatrix out(heads, 8, 3);
      const int32_t none = 0;
      sparse_mla({q.view, pages.rows, &none, 0, 1, out.view});
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t c = 0; c < 8; ++c) EXPECT_EQ(out.view[h][c], 0.0f);
    }
}

// Scores far apart, in whatever order the blocks come; f32 scores of 3000 are 2e-4 apart, bf16
// holds one of 16 of them.
TEST(SparseMla, SurvivesLargeScores) {
  const int64_t s = 300;
  for (const int64_t heads : {1, 20}) {
    TestMatrix q(heads, 9, 1), rows(s, 9, 2);
    for (int64_t i = 0; i < s; ++i) rows.view[i][8] = static_cast<float>(i % 2 ? 3000 - i : i * 10);
    for (int64_t h = 0; h < heads; ++h) q.view[h][8] = 1;
    round_queries(q.view);
    for (const RowFormat format : {RowFormat::kF32, RowFormat::kBF16, RowFormat::kFP8}) {
      const TestPages pages(rows.view, {format, 8, 1});
      TestMatrix out(heads, 8, 3), expected(heads, 8, 4);
      SparseMla io{q.view, pages.rows, nullptr, s, 1, out.view};
      sparse_mla(io);
      io.out_HC = expected.view;
      reference::sparse_mla(io);
      EXPECT_LE(max_difference(out.view, expected.view), format == RowFormat::kF32 ? 1e-3 : 1e-2);
    }
  }
}

// Half a unit in the last place of such scores is more than an exponential can take: the score and
// its maximum must be rounded alike.
TEST(SparseMla, HugeScoresStayFinite) {
  const int64_t s = 40;
  for (const int64_t heads : kHeads) {
    TestMatrix q(heads, 24, 1), rows(s, 24, 2);
    const TestMatrix out(heads, 16, 3);
    for (int64_t i = 0; i < s; ++i) std::fill_n(rows.view[i], 16, 1.0f);
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t x = 0; x < 24; ++x) q.view[h][x] *= 1e11f;
    for (const RowFormat format : {RowFormat::kF32, RowFormat::kBF16}) {
      const TestPages pages(rows.view, {format, 16, 8});
      sparse_mla({q.view, pages.rows, nullptr, s, 0.137f, out.view});
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t c = 0; c < 16; ++c) ASSERT_NEAR(out.view[h][c], 1.0f, 1e-3f);
    }
  }
}

// A broken row must not vanish from the answer, nor a broken query.
TEST(SparseMla, NanShows) {
  const int64_t s = 40;
  for (const int64_t heads : kHeads)
    for (const RowFormat format : {RowFormat::kF32, RowFormat::kBF16}) {
      TestMatrix q(heads, 24, 1), rows(s, 24, 2), out(heads, 16, 3);
      rows.view[20][3] = NAN;
      const TestPages pages(rows.view, {format, 16, 8});
      sparse_mla({q.view, pages.rows, nullptr, s, 0.2f, out.view});
      EXPECT_TRUE(std::isnan(out.view[0][3]));
      rows.view[20][3] = 1;
      q.view[1][2] = NAN;
      const TestPages whole(rows.view, {format, 16, 8});
      sparse_mla({q.view, whole.rows, nullptr, s, 0.2f, out.view});
      EXPECT_TRUE(std::isnan(out.view[1][3]));
      EXPECT_FALSE(std::isnan(out.view[0][3]));
    }
}

}  // namespace
}  // namespace fathom::kernels
