#include "kernels/fp8.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

TEST(E4M3, EveryCodeSurvivesTheRoundTrip) {
  for (int bits = 0; bits < 256; ++bits) {
    const float value = from_e4m3(static_cast<uint8_t>(bits));
    if ((bits & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
    } else {
      EXPECT_EQ(to_e4m3(value), bits) << value;
    }
  }
  EXPECT_EQ(from_e4m3(0x7e), 448.0f);
  EXPECT_EQ(from_e4m3(0x01), 0x1.0p-9f);
}

TEST(E4M3, RoundsToTheNearestCodeTiesToEven) {
  base::Random random(3);
  for (int i = 0; i < 20000; ++i) {
    const float value = static_cast<float>(random.normal() * std::exp2(random.uniform() * 20 - 12));
    const uint8_t bits = to_e4m3(value);
    float best = INFINITY;
    for (int code = 0; code < 256; ++code)
      if ((code & 0x7f) != 0x7f)
        best = std::min(best, std::abs(from_e4m3(static_cast<uint8_t>(code)) - value));
    EXPECT_EQ(std::abs(from_e4m3(bits) - value), best) << value;
  }
  EXPECT_EQ(from_e4m3(to_e4m3(17.0f)), 16.0f);  // between 16 and 18: 16 has the even mantissa
  EXPECT_EQ(from_e4m3(to_e4m3(19.0f)), 20.0f);
  EXPECT_EQ(from_e4m3(to_e4m3(1e9f)), 448.0f);
}

TEST(HalfFormats, KnownValues) {
  EXPECT_EQ(from_f16(0x3c00), 1.0f);
  EXPECT_EQ(from_f16(0x0001), 0x1.0p-24f);
  EXPECT_EQ(from_f16(0xfbff), -65504.0f);
  EXPECT_TRUE(std::isinf(from_f16(0x7c00)));
  EXPECT_EQ(to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(to_bf16(1.00390625f), 0x3f80);  // halfway: to even
  EXPECT_EQ(to_bf16(1.01171875f), 0x3f82);
  EXPECT_TRUE(std::isnan(from_bf16(to_bf16(NAN))));
}

// Eight lanes at a time and what is left of them, any bits: as one by one.
TEST(HalfFormats, RoundingManyEqualsRoundingOne) {
  std::vector<float> x;
  for (const uint32_t bits :
       {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0x18000u, 0x3f808000u, 0x3f818000u, 0x7f7fffffu,
        0x7f800000u, 0x7f800001u, 0x7fc00000u, 0x7fff8000u, 0x7fffffffu})
    for (const uint32_t sign : {0u, 0x80000000u}) x.push_back(std::bit_cast<float>(bits | sign));
  base::Random random(5);
  for (int i = 0; i < 1000; ++i)
    x.push_back(std::bit_cast<float>(static_cast<uint32_t>(random.below(uint64_t{1} << 32))));
  for (const size_t size : {size_t{1}, size_t{7}, size_t{28}, x.size() - 1}) {
    std::vector<float> rounded(size, -1.0f);
    round_to_bf16({x.data(), size}, rounded);
    for (size_t i = 0; i < size; ++i)
      ASSERT_EQ(std::bit_cast<uint32_t>(rounded[i]), static_cast<uint32_t>(to_bf16(x[i])) << 16)
          << std::bit_cast<uint32_t>(x[i]);
  }
}

TEST(QuantiseActivations, ScalesArePowersOfTwoAndTight) {
  const TestMatrix x(5, 300, 8);
  TestMatrix q(5, 300, 9), scale(5, 3, 10);
  quantise_activations(x.view, q.view, scale.view);
  for (int64_t m = 0; m < 5; ++m) {
    for (int64_t g = 0; g < 3; ++g) {
      float amax = 0;
      for (int64_t k = g * 128; k < std::min<int64_t>(300, (g + 1) * 128); ++k) {
        amax = std::max(amax, std::abs(x.view[m][k]));
        const float s = scale.view[m][g];
        EXPECT_EQ(q.view[m][k], from_e4m3(to_e4m3(x.view[m][k] / s)));
      }
      int exponent;
      EXPECT_EQ(std::frexp(scale.view[m][g], &exponent), 0.5f);
      EXPECT_LE(amax / scale.view[m][g], 448.0f);
      EXPECT_GT(amax / scale.view[m][g], 223.0f);
    }
  }
  TestMatrix y(5, 300, 11);
  round_through_fp8(x.view, y.view);
  for (int64_t k = 0; k < 300; ++k) EXPECT_EQ(y.view[2][k], q.view[2][k] * scale.view[2][k / 128]);
}

TEST(Ue8m0Scale, FloorsTinyGroupsAndKeepsExactPowers) {
  EXPECT_EQ(ue8m0_scale(448.0f), 1.0f);
  EXPECT_EQ(ue8m0_scale(449.0f), 2.0f);
  EXPECT_EQ(ue8m0_scale(0.0f), ue8m0_scale(1e-4f));
}

TEST(Hadamard, IsOrthonormalAndItsOwnInverse) {
  TestMatrix x(2, 128, 1), original(2, 128, 1);
  hadamard(x.view);
  double before = 0, after = 0, first = 0;
  for (int64_t i = 0; i < 128; ++i) {
    before += original.view[0][i] * original.view[0][i];
    after += x.view[0][i] * x.view[0][i];
    first += original.view[0][i];
  }
  EXPECT_NEAR(before, after, 1e-3);
  EXPECT_NEAR(x.view[0][0], first / std::sqrt(128.0), 1e-4);
  hadamard(x.view);
  EXPECT_LE(max_difference(x.view, original.view), 1e-5);
}

}  // namespace
}  // namespace fathom::kernels
