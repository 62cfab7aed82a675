#include "kernels/key_union_amx.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "kernels/fp8.h"
#include "kernels/test_data.h"

#if FATHOM_HAS_AMX_KERNELS

namespace fathom::kernels {
namespace {

constexpr int64_t kRows = 300;

float bf16(float x) { return from_bf16(to_bf16(x)); }

// 61 queries, some without keys: the second union has three missing ones.
std::vector<std::vector<int32_t>> some_lists() {
  base::Random random(3);
  std::vector<std::vector<int32_t>> lists;
  for (int t = 0; t < 61; ++t) {
    std::set<int32_t> keys;
    const int64_t count = t % 7 == 3 ? 0 : static_cast<int64_t>(random.below(90));
    while (std::ssize(keys) < count) keys.insert(static_cast<int32_t>(random.below(kRows)));
    lists.emplace_back(keys.begin(), keys.end());
  }
  return lists;
}

// The weight of query q for the i-th key of a union, exact in bf16.
float weight_of(int64_t i, int64_t q) { return 0.25f * static_cast<float>((i + 3 * q) % 9) - 1.0f; }

AMX_KERNEL void fill_weights(int64_t num_keys, uint16_t* by_key, uint32_t* tiles) {
  alignas(64) float weights[kAmxK][kUnionQueries];
  for (int64_t first = 0; first < num_keys; first += kAmxK) {
    for (int64_t i = 0; i < kAmxK; ++i)
      for (int64_t q = 0; q < kUnionQueries; ++q) {
        weights[i][q] = weight_of(first + i, q);
        by_key[(first + i) * kUnionQueries + q] = to_bf16(weights[i][q]);
      }
    for (int64_t q = 0; q < kUnionQueries; q += kAmxRows, tiles += kTileWords) {
      struct Weights {
        const float* at;
        AMX_INLINE __m512 operator()(int64_t i) const {
          return _mm512_load_ps(at + i * kUnionQueries);
        }
      };
      store_weight_tile(Weights{&weights[0][q]}, tiles);
    }
  }
}

// A head's elements.
class KeyUnionAmx : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override {
    if (!has_amx()) GTEST_SKIP() << "the processor has no AMX";
  }

  template <typename T>
  T* buffer(int64_t count) {
    buffers_.push_back(std::make_unique<LineBuffer>());
    return buffers_.back()->reserve<T>(count);
  }

 private:
  std::vector<std::unique_ptr<LineBuffer>> buffers_;
};
INSTANTIATE_TEST_SUITE_P(Dims, KeyUnionAmx, ::testing::Values(1, 16, 17, 32, 48, 70, 129));

// Two heads' rows, of which the second is read; the sums of both heads' queries go to a key.
TEST_P(KeyUnionAmx, ProductsEqualLoopsOverRoundedNumbers) {
  const int64_t dim = GetParam(), columns = sum_columns(dim), stride = columns + kAmxCols;
  const auto lists = some_lists();
  const TestSelection selection(lists);
  const TestMatrix x(std::ssize(lists), 2 * dim, 1, 3, 1), y(kRows, 2 * dim, 2, 1, 2);
  HeadRows x_heads, y_heads;
  x_heads.assign(x.view, 2);
  y_heads.assign(y.view, 2);
  const int64_t words = x_heads.words(), query_size = kUnionQueries * words;
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 32}, {32, 61}, {3, 4}, {5, 6}}) {
    KeyUnion keys;
    keys.assign(selection.view(), begin, end);
    const int64_t num_keys = std::ssize(keys.padded_keys());
    const auto query = [&](int64_t q, int64_t h, int64_t d) {
      return q < end - begin ? bf16(x.view[begin + q][h * dim + d]) : 0.0f;
    };
    const auto key = [&](int64_t i, int64_t d) {
      return bf16(y.view[keys.padded_keys()[i]][dim + d]);
    };

    auto* const rows = buffer<uint32_t>(num_keys * words);
    auto* const row_tiles = buffer<uint32_t>(num_keys * words);
    auto* const query_rows = buffer<uint32_t>(query_size);
    auto* const query_columns = buffer<uint32_t>(query_size);
    auto* const query_tiles = buffer<uint32_t>(2 * query_size);
    auto* const dots = buffer<float>(num_keys * kUnionQueries);
    auto* const by_key = buffer<uint16_t>(2 * num_keys * kUnionQueries);
    auto* const weight_tiles = buffer<uint32_t>(num_keys * kUnionQueries / 2);
    auto* const query_sums = buffer<float>(kUnionQueries * columns);
    auto* const key_sums = buffer<float>(num_keys * stride);
    copy_key_rows(y_heads, 1, keys.padded_keys(), rows);
    const PairRows pair_rows{rows, num_keys, words, words};
    pack_as_rows(pair_rows, num_keys / kAmxK * kTileWords, row_tiles);
    for (int64_t h = 0; h < 2; ++h) {
      pack_queries(x_heads, h, keys, query_rows, query_columns, query_tiles + h * query_size);
      fill_weights(num_keys, by_key + h * num_keys * kUnionQueries, weight_tiles);
    }
    std::fill_n(query_sums, kUnionQueries * columns, 1.0f);
    std::fill_n(key_sums, num_keys * stride, 7.0f);
    {
      const TileShape tiles(kAmxCols);
      multiply_keys_and_queries(pair_rows, query_columns, dots);
      add_sums_by_query(weight_tiles, row_tiles, num_keys / kAmxK * kTileWords, num_keys, dim,
                        query_sums);
      sum_by_key(by_key, query_tiles, 2, num_keys, words, dim, stride, key_sums);
    }

    for (int64_t i = 0; i < num_keys; ++i)
      for (int64_t q = 0; q < kUnionQueries; ++q) {
        double dot = 0;
        for (int64_t d = 0; d < dim; ++d) dot += static_cast<double>(query(q, 1, d)) * key(i, d);
        ASSERT_NEAR(dots[i * kUnionQueries + q], dot, 1e-4) << i << " " << q;
      }
    for (int64_t q = 0; q < kUnionQueries; ++q)
      for (int64_t d = 0; d < dim; ++d) {
        double sum = 1;
        for (int64_t i = 0; i < num_keys; ++i)
          sum += static_cast<double>(weight_of(i, q)) * key(i, d);
        ASSERT_NEAR(query_sums[q * columns + d], sum, 1e-4 * (1 + std::abs(sum))) << q << " " << d;
      }
    for (int64_t i = 0; i < num_keys; ++i) {
      for (int64_t d = 0; d < dim; ++d) {
        double sum = 0;
        for (int64_t q = 0; q < kUnionQueries; ++q)
          sum += static_cast<double>(weight_of(i, q)) * (query(q, 0, d) + query(q, 1, d));
        ASSERT_NEAR(key_sums[i * stride + d], sum, 1e-4 * (1 + std::abs(sum))) << i << " " << d;
      }
      for (int64_t d = columns; d < stride; ++d) ASSERT_EQ(key_sums[i * stride + d], 7.0f);
    }
  }
}

TEST_P(KeyUnionAmx, SumsGoToTheKeysRowsAndNowhereElse) {
  const int64_t dim = GetParam(), columns = sum_columns(dim);
  const std::vector<int32_t> keys = {0, 2, 3, 77, 298, 299};
  const TestMatrix rows(kRows, dim, 2, 5, 3), before(kRows, dim, 2, 5, 3);
  auto* const sums = buffer<float>(std::ssize(keys) * columns);
  for (int64_t i = 0; i < std::ssize(keys) * columns; ++i) sums[i] = static_cast<float>(i + 1);
  add_to_rows(sums, keys, rows.view);
  std::vector<float> expected = before.storage;
  for (int64_t i = 0; i < std::ssize(keys); ++i)
    for (int64_t d = 0; d < dim; ++d)
      expected[before.view[keys[i]] - before.storage.data() + d] += sums[i * columns + d];
  EXPECT_EQ(rows.storage, expected);
}

TEST_P(KeyUnionAmx, ListsComeBackAsTheyWent) {
  const auto lists = some_lists();
  const TestSelection selection(lists);
  std::vector<float> numbers(selection.keys.size()), again(selection.keys.size());
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i + 1);
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 32}, {32, 61}}) {
    KeyUnion keys;
    keys.assign(selection.view(), begin, end);
    const int64_t num_keys = std::ssize(keys.padded_keys());
    auto* const spread = buffer<float>(num_keys * kUnionQueries);
    spread_lists(keys, selection.view(), numbers.data(), spread);
    for (int64_t i = 0; i < num_keys; ++i)
      for (int64_t q = 0; q < kUnionQueries; ++q)
        ASSERT_EQ(spread[i * kUnionQueries + q] != 0, keys.selectors()[i] >> q & 1);
    collect_lists(keys, selection.view(), spread, again.data());
  }
  EXPECT_EQ(again, numbers);
}

}  // namespace
}  // namespace fathom::kernels

#endif
