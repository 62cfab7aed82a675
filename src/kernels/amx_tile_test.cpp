#include "kernels/amx_tile.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "base/random.h"
#include "kernels/fp8.h"

namespace fathom::kernels {
namespace {

#if FATHOM_HAS_AMX_KERNELS

float widen(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// A tile's operands: a [16][32], b [16 pairs][columns][2], c [16][columns].
struct Tiles {
  std::vector<uint16_t> a, b;
  std::vector<float> c;

  Tiles(int64_t columns, uint64_t seed)
      : a(kAmxRows * kAmxK), b(kAmxK * columns), c(kAmxRows * columns) {
    base::Random random(seed);
    for (auto& value : a) value = to_bf16(static_cast<float>(random.normal()));
    for (auto& value : b) value = to_bf16(static_cast<float>(random.normal()));
    for (auto& value : c) value = static_cast<float>(random.normal());
  }
};

std::vector<float> multiply(const Tiles& tiles, int64_t columns, int64_t rows = kAmxRows) {
  std::vector<float> c = tiles.c;
  const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(float));
  const TileShape shape(columns, rows);
  tile_load<1>(c.data(), row_bytes);
  tile_load<5>(tiles.a.data(), kAmxK * static_cast<int64_t>(sizeof(uint16_t)));
  tile_load<7>(tiles.b.data(), row_bytes);
  tile_multiply<1, 5, 7>();
  tile_store<1>(c.data(), row_bytes);
  return c;
}

// The order that the header promises, a number at a time.
float expected(const Tiles& tiles, int64_t columns, int64_t row, int64_t column) {
  float sum[2] = {0, 0};
  for (int64_t k = 0; k < kAmxK; ++k) {
    const float b = widen(tiles.b[(k / 2 * columns + column) * 2 + k % 2]);
    sum[k % 2] = std::fma(widen(tiles.a[row * kAmxK + k]), b, sum[k % 2]);
  }
  return tiles.c[row * columns + column] + (sum[0] + sum[1]);
}

TEST(AmxTile, SumsInTheOrderThatTheHeaderSays) {
  if (!has_amx()) GTEST_SKIP() << "the processor has no AMX";
  for (const int64_t columns : {1, 2, 7, 16}) {
    const Tiles tiles(columns, columns);
    const std::vector<float> c = multiply(tiles, columns);
    for (int64_t row = 0; row < kAmxRows; ++row)
      for (int64_t column = 0; column < columns; ++column)
        ASSERT_EQ(c[row * columns + column], expected(tiles, columns, row, column))
            << row << ", " << column << " of " << columns;
  }
}

TEST(AmxTile, FewerRowsHaveTheSameBitsAndTheOthersStayAsTheyAre) {
  if (!has_amx()) GTEST_SKIP() << "the processor has no AMX";
  const Tiles tiles(kAmxCols, 4);
  const std::vector<float> all = multiply(tiles, kAmxCols);
  for (const int64_t rows : {1, 4, 8, 12}) {
    const std::vector<float> c = multiply(tiles, kAmxCols, rows);
    for (int64_t i = 0; i < kAmxRows * kAmxCols; ++i)
      ASSERT_EQ(c[i], i < rows * kAmxCols ? all[i] : tiles.c[i]) << rows << " " << i;
  }
}

TEST(AmxTile, AColumnsBitsDoNotDependOnTheOthers) {
  if (!has_amx()) GTEST_SKIP() << "the processor has no AMX";
  const Tiles wide(kAmxCols, 3);
  const std::vector<float> all = multiply(wide, kAmxCols);
  for (int64_t column = 0; column < kAmxCols; ++column) {
    Tiles one(1, 0);
    one.a = wide.a;
    for (int64_t row = 0; row < kAmxRows; ++row) one.c[row] = wide.c[row * kAmxCols + column];
    for (int64_t k = 0; k < kAmxK; ++k) one.b[k] = wide.b[(k / 2 * kAmxCols + column) * 2 + k % 2];
    const std::vector<float> alone = multiply(one, 1);
    for (int64_t row = 0; row < kAmxRows; ++row)
      ASSERT_EQ(alone[row], all[row * kAmxCols + column]);
  }
}

TEST(AmxTile, SubnormalNumbersAreZero) {
  if (!has_amx()) GTEST_SKIP() << "the processor has no AMX";
  Tiles tiles(1, 7);
  std::fill(tiles.b.begin(), tiles.b.end(), uint16_t{0x0001});  // 2^-133
  for (float& value : tiles.c) value = 1e-40f;
  for (auto& value : tiles.a) value = to_bf16(0x1p120f);
  for (const float value : multiply(tiles, 1)) EXPECT_EQ(value, 0.0f);
}

TEST(AmxTile, FewerColumnsAfterMoreLeaveNothingBehind) {
  if (!has_amx()) GTEST_SKIP() << "the processor has no AMX";
  const Tiles wide(kAmxCols, 5), narrow(3, 6);
  multiply(wide, kAmxCols);
  const std::vector<float> first = multiply(narrow, 3);
  multiply(wide, kAmxCols);
  EXPECT_EQ(multiply(narrow, 3), first);
}

#endif

}  // namespace
}  // namespace fathom::kernels
