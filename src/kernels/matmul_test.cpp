#include "kernels/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <tuple>

#include "base/parallel.h"
#include "kernels/bf16_dot.h"
#include "kernels/fp8.h"
#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

// Of E4M3's blocks: factors of any size, ue8m0's, or either by turns of 128 rows. Kernels may take
// powers of two another way.
enum class Factors { kAny, kPowersOfTwo, kByTurns };

// Weights of one format made from the same normal values.
struct TestWeight {
  std::vector<float> f32;
  std::vector<uint16_t> half;
  std::vector<uint8_t> e4m3;
  std::vector<float> scale_inv;
  WeightView view;

  TestWeight(WeightFormat format, int64_t rows, int64_t cols, Factors factors = Factors::kAny)
      : f32(rows * cols) {
    base::Random random(9);
    for (float& value : f32) value = static_cast<float>(random.normal());
    view = {format, f32.data(), rows, cols, nullptr, 0};
    if (format == WeightFormat::kBF16) {
      for (float value : f32) half.push_back(to_bf16(value));
      view.data = half.data();
    } else if (format == WeightFormat::kF16) {
      // Any bit pattern with a small exponent is a good f16.
      for (size_t i = 0; i < f32.size(); ++i) half.push_back(0x3000 | (random.next() & 0x8fff));
      view.data = half.data();
    } else if (format == WeightFormat::kE4M3) {
      for (float value : f32) e4m3.push_back(to_e4m3(value));
      const int64_t block_cols = (cols + 127) / 128, blocks = (rows + 127) / 128 * block_cols;
      for (int64_t i = 0; i < blocks; ++i) {
        const auto any = 0.25f + static_cast<float>(random.uniform());
        const bool is_power = factors == Factors::kPowersOfTwo ||
                              (factors == Factors::kByTurns && i / block_cols % 2 == 0);
        scale_inv.push_back(is_power ? std::exp2(std::round(std::log2(any))) : any);
      }
      view.data = e4m3.data();
      view.scale_inv = scale_inv.data();
    }
  }
};

struct TestKind {
  WeightFormat format;
  Factors factors = Factors::kAny;
};
constexpr TestKind kTestKinds[] = {{WeightFormat::kF32},
                                   {WeightFormat::kBF16},
                                   {WeightFormat::kF16},
                                   {WeightFormat::kE4M3},
                                   {WeightFormat::kE4M3, Factors::kPowersOfTwo},
                                   {WeightFormat::kE4M3, Factors::kByTurns}};

TEST(Linear, EqualsReferenceOverOddShapesAndFormats) {
  for (auto format :
       {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kF16, WeightFormat::kE4M3}) {
    for (int64_t m : {1, 3, 4, 5, 300}) {
      for (auto [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {7, 13}, {49, 64}, {130, 257}}) {
        const TestWeight weight(format, n, k);
        const TestMatrix x(m, k, 1, 1, 3);
        TestMatrix y(m, n, 2, 0, 1), expected(m, n, 3);
        linear(x.view, weight.view, y.view);
        reference::linear(x.view, weight.view, expected.view);
        EXPECT_LE(max_difference(y.view, expected.view), 1e-5 * std::sqrt(k) * 4)
            << "format " << static_cast<int>(format) << " m " << m << " n " << n << " k " << k;
      }
    }
  }
}

TEST(Linear, RoundsItsInputToBF16WhereAsked) {
  for (auto [format, factors] : kTestKinds) {
    for (int64_t m : {1, 2, 3, 4, 5, 9, 70}) {
      for (auto [n, k] :
           {std::pair<int64_t, int64_t>{1, 1}, {7, 13}, {49, 64}, {130, 257}, {70, 1300}}) {
        const TestWeight weight(format, n, k, factors);
        const TestMatrix x(m, k, 1, 1, 3);
        TestMatrix rounded(m, k, 1, 1, 3);
        for (float& value : rounded.storage) value = from_bf16(to_bf16(value));
        TestMatrix y(m, n, 2, 0, 1), expected(m, n, 3);
        linear(x.view, weight.view, y.view, Precision::kBF16);
        reference::linear(rounded.view, weight.view, expected.view);
        EXPECT_LE(max_difference(y.view, expected.view), 1e-5 * std::sqrt(k) * 4)
            << "format " << static_cast<int>(format) << " m " << m << " n " << n << " k " << k;
      }
    }
  }
}

// E4m3 products are computed at other powers of two than their operands have.
TEST(Linear, E4M3KeepsItsPrecisionForInputsOfAnyMagnitude) {
  TestWeight weight(WeightFormat::kE4M3, 70, 270);
  for (const float magnitude : {1e-14f, 1e-6f, 1e4f, 1e14f}) {
    for (const float factor : {1e-4f, 1.0f, 100.0f}) {
      std::fill(weight.scale_inv.begin(), weight.scale_inv.end(), factor);
      for (const int64_t m : {1, 4, 6}) {
        TestMatrix x(m, 270, 1);
        for (int64_t i = 0; i < m; ++i)
          for (int64_t k = 0; k < 270; ++k) x.view[i][k] *= magnitude;
        TestMatrix y(m, 70, 2), expected(m, 70, 3);
        linear(x.view, weight.view, y.view);
        reference::linear(x.view, weight.view, expected.view);
        EXPECT_LE(max_difference(y.view, expected.view), 1e-4 * magnitude * factor)
            << magnitude << " " << factor << " " << m;
      }
    }
  }
}

// Zeros, subnormal numbers and NaN among them, wherever in a row of W they stand.
TEST(Linear, EveryByteOfE4M3HasItsValue) {
  constexpr int64_t kCols = 256, kOnes = 3;
  std::vector<uint8_t> bytes(kCols * kCols);
  std::vector<float> factors(4, 0.5f);
  for (int64_t n = 0; n < kCols; ++n)
    for (int64_t k = 0; k < kCols; ++k) bytes[n * kCols + k] = static_cast<uint8_t>(n + k);
  const WeightView weight{WeightFormat::kE4M3, bytes.data(), kCols, kCols, factors.data(), 0};
  // Each row of W has every byte, so each sum a NaN.
  for (const int64_t m : {1, 20, 40}) {
    if (!has_bf16_dot()) break;
    const TestMatrix x(m, kCols, 1);
    TestMatrix y(m, kCols, 2);
    linear(x.view, weight, y.view, Precision::kBF16);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t n = 0; n < kCols; ++n) ASSERT_TRUE(std::isnan(y.view[i][n])) << n;
  }
  // Without the two NaNs each sum is one number.
  for (uint8_t& byte : bytes)
    if ((byte & 127) == 127) byte = 0;
  for (const float factor : {0.5f, 0.3f, 0x1p-60f, 0x1p50f, -0.5f, -0.3f}) {
    std::fill(factors.begin(), factors.end(), factor);
    TestMatrix x(kCols, kCols, 1), y(kCols, kCols, 2);
    std::fill(x.storage.begin(), x.storage.end(), 0.0f);
    for (int64_t k = 0; k < kCols; ++k) x.view[k][k] = kOnes;
    const auto expect_numbers = [&](int64_t begin, int64_t end) {
      const auto rows = y.view.slice_rows(begin, end);
      linear(x.view.slice_rows(begin, end), weight, rows, Precision::kBF16);
      for (int64_t k = begin; k < end; ++k)
        for (int64_t n = 0; n < kCols; ++n)
          ASSERT_EQ(y.view[k][n], kOnes * from_e4m3(bytes[n * kCols + k]) * factor)
              << n << ", " << k;
    };
    expect_numbers(0, kCols);
    for (int64_t k = 0; k < kCols; ++k) expect_numbers(k, k + 1);
  }
}

// A power of two beyond what an exponent takes in addition is a factor like any other.
TEST(Linear, E4M3TakesFactorsOfAnyMagnitudeInBF16) {
  if (!has_bf16_dot()) GTEST_SKIP() << "f32 kernels take less: matmul.h";
  for (const float factor :
       {0x1p-120f, 0x1p-100f, 0x1p-65f, 0x1p-64f, 0x1p64f, 0x1p65f, 0x1p90f, 0x1p118f})
    for (const int64_t m : {1, 40}) {
      TestWeight weight(WeightFormat::kE4M3, 70, 270);
      std::fill(weight.scale_inv.begin(), weight.scale_inv.end(), factor);
      TestMatrix x(m, 270, 1), y(m, 70, 2), expected(m, 70, 3);
      for (float& value : x.storage) value = from_bf16(to_bf16(value));
      linear(x.view, weight.view, y.view, Precision::kBF16);
      reference::linear(x.view, weight.view, expected.view);
      EXPECT_LE(max_difference(y.view, expected.view), 1e-4 * factor) << factor << " " << m;
    }
}

// Bits of y = x W^T, row by row of x.
void expect_bits_of_single_rows(View2<const float> x, const WeightView& w, View2<const float> y) {
  TestMatrix row(1, w.rows, 1);
  for (int64_t i = 0; i < x.rows; ++i) {
    linear(x.slice_rows(i, i + 1), w, row.view, Precision::kBF16);
    EXPECT_EQ(max_difference(row.view, y.slice_rows(i, i + 1)), 0.0) << i << " of " << x.rows;
  }
}

// Sums of more k than the second cache holds of 64 rows are taken up again.
TEST(Linear, LongRowsOfE4M3HaveTheBitsOfOneRow) {
  constexpr int64_t kOutputs = 40, kCols = 8192 * 2 + 200;
  const TestWeight weight(WeightFormat::kE4M3, kOutputs, kCols, Factors::kPowersOfTwo);
  for (const int64_t rows : {60, 70}) {
    TestMatrix x(rows, kCols, 1), y(rows, kOutputs, 2), expected(rows, kOutputs, 3);
    for (float& value : x.storage) value = from_bf16(to_bf16(value));
    linear(x.view, weight.view, y.view, Precision::kBF16);
    reference::linear(x.view, weight.view, expected.view);
    EXPECT_LE(max_difference(y.view, expected.view), 1e-5 * std::sqrt(kCols) * 4);
    expect_bits_of_single_rows(x.view, weight.view, y.view);
  }
}

// More rows of both than the second cache holds sums of, neither a multiple of anything.
TEST(Linear, ManyRowsByManyOfE4M3HaveTheBitsOfOneRow) {
  constexpr int64_t kOutputs = 2150, kCols = 300;
  const TestWeight weight(WeightFormat::kE4M3, kOutputs, kCols, Factors::kPowersOfTwo);
  TestMatrix x(1050, kCols, 1), y(1050, kOutputs, 2), expected(1050, kOutputs, 3);
  for (float& value : x.storage) value = from_bf16(to_bf16(value));
  for (const auto& [begin, end] : {std::pair{0, 2150}, {37, 2127}, {100, 1000}, {111, 118}}) {
    const WeightView w = weight.view.slice_rows(begin, end);
    const View2<float> out(y.view.data, x.view.rows, w.rows, kOutputs);
    const View2<float> reference(expected.view.data, x.view.rows, w.rows, kOutputs);
    linear(x.view, w, out, Precision::kBF16);
    reference::linear(x.view, w, reference);
    EXPECT_LE(max_difference(out, reference), 1e-5 * std::sqrt(kCols) * 4) << begin;
    expect_bits_of_single_rows(x.view, w, out);
  }
}

TEST(Linear, ReadsNothingBehindItsOperands) {
  for (const auto [format, factors] : kTestKinds)
    for (const int64_t m : {1, 2, 16, 17, 40, 70})
      for (auto [n, k] : {std::pair<int64_t, int64_t>{1, 32},
                          {16, 64},
                          {16, 100},
                          {33, 128},
                          {50, 200},
                          {32, 200},
                          {7, 1}}) {
        if (format == WeightFormat::kF32 || format == WeightFormat::kF16) continue;
        const TestWeight weight(format, n, k, factors);
        const TestMatrix x(m, k, 1);
        TestMatrix expected(m, n, 2), y(m, n, 3);
        linear(x.view, weight.view, expected.view, Precision::kBF16);
        const GuardedCopy w(weight.view.data, n * k * (format == WeightFormat::kBF16 ? 2 : 1));
        const GuardedCopy input(x.storage.data(), m * k * sizeof(float));
        const GuardedCopy output(y.storage.data(), m * n * sizeof(float));
        WeightView view = weight.view;
        view.data = w.as<void>();
        linear({input.as<float>(), m, k, k}, view, {output.as<float>(), m, n, n}, Precision::kBF16);
        EXPECT_EQ(max_difference({output.as<float>(), m, n, n}, expected.view), 0.0)
            << m << " " << n << " " << k;
      }
}

TEST(Linear, NoColumnsGiveZeros) {
  for (const auto precision : {Precision::kF32, Precision::kBF16})
    for (const auto format : {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kE4M3})
      for (const int64_t m : {1, 9, 40}) {
        const uint8_t none = 0;
        const float factor = 1;
        TestMatrix y(m, 33, 2);
        linear(View2<const float>(nullptr, m, 0, 0), {format, &none, 33, 0, &factor, 0}, y.view,
               precision);
        for (int64_t i = 0; i < m; ++i)
          for (int64_t n = 0; n < 33; ++n) ASSERT_EQ(y.view[i][n], 0.0f);
      }
}

TEST(Linear, ARowsBitsDependOnNothingButTheRow) {
  for (const auto [format, factors] : kTestKinds)
    for (const auto precision : {Precision::kF32, Precision::kBF16})
      for (const int64_t k : {200, 203, 324, 384, 600}) {
        constexpr int64_t kRows = 269;  // few remain behind those that share a packed panel
        const TestMatrix x(kRows, k, 5);
        const TestWeight weight(format, 100, k, factors);
        TestMatrix all(kRows, 100, 6), some(kRows, 100, 7);
        base::set_num_threads(2);
        linear(x.view, weight.view, all.view, precision);
        base::set_num_threads(1);
        for (int64_t m : {0, 1, 2, 3, 63, 150, 262, 268})
          for (int64_t count : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33, 130}) {
            if (m + count > kRows) break;
            const auto out = some.view.slice_rows(0, count);
            linear(x.view.slice_rows(m, m + count), weight.view, out, precision);
            EXPECT_EQ(max_difference(out, all.view.slice_rows(m, m + count)), 0.0)
                << static_cast<int>(format) << " " << static_cast<int>(precision) << " " << m << " "
                << count << " " << k;
          }
      }
  base::set_num_threads(2);
}

// Whatever the shape, and whatever another product left in the scratch.
TEST(Linear, WhatIsNoNumberStaysInItsRow) {
  constexpr int64_t kOutputs = 33;
  for (const WeightFormat format : {WeightFormat::kBF16, WeightFormat::kE4M3})
    for (const int64_t k : {32, 64, 97, 100, 127, 128, 160, 200, 225, 384}) {
      const TestWeight weight(format, kOutputs, k), wide(format, kOutputs, 512);
      TestMatrix nothing(40, 512, 1), unused(40, kOutputs, 2);
      std::fill(nothing.storage.begin(), nothing.storage.end(), std::nanf(""));
      for (const int64_t rows : {1, 2, 3, 8, 9, 40}) {
        TestMatrix x(rows, k, 3), y(rows, kOutputs, 4), alone(1, kOutputs, 5);
        for (int64_t m = 1; m < rows; m += 2) std::fill_n(x.view[m], k, std::nanf(""));
        linear(nothing.view, wide.view, unused.view, Precision::kBF16);
        linear(x.view, weight.view, y.view, Precision::kBF16);
        for (int64_t m = 0; m < rows; m += 2) {
          linear(x.view.slice_rows(m, m + 1), weight.view, alone.view, Precision::kBF16);
          for (int64_t n = 0; n < kOutputs; ++n)
            ASSERT_TRUE(std::isfinite(y.view[m][n])) << k << " " << rows << " " << m << " " << n;
          ASSERT_EQ(std::memcmp(y.view[m], alone.view[0], kOutputs * sizeof(float)), 0)
              << k << " " << rows << " " << m;
        }
      }
    }
}

TEST(Linear, ASliceOfRowsKeepsItsScales) {
  const TestWeight weight(WeightFormat::kE4M3, 300, 40);
  const TestMatrix x(2, 40, 5);
  TestMatrix all(2, 300, 6), some(2, 70, 7);
  linear(x.view, weight.view, all.view);
  linear(x.view, weight.view.slice_rows(100, 170), some.view);
  EXPECT_EQ(max_difference(some.view, View2<float>(all.view.data + 100, 2, 70, 300)), 0.0);
}

// Panels of sixteen are those of the whole matrix: a slice begins and ends inside of some.
TEST(Linear, ASliceOfRowsHasTheWholesBitsInBF16) {
  for (const auto [format, factors] : kTestKinds)
    for (const int64_t k : {200, 384})
      for (const int64_t m : {1, 8, 9, 40, 90}) {
        const TestWeight weight(format, 300, k, factors);
        const TestMatrix x(m, k, 5);
        TestMatrix all(m, 300, 6), some(m, 70, 7);
        linear(x.view, weight.view, all.view, Precision::kBF16);
        for (const int64_t begin : {100, 150, 200, 230}) {
          linear(x.view, weight.view.slice_rows(begin, begin + 70), some.view, Precision::kBF16);
          EXPECT_EQ(max_difference(some.view, View2<float>(all.view.data + begin, m, 70, 300)), 0.0)
              << static_cast<int>(format) << " " << k << " " << m << " " << begin;
        }
      }
}

// Two products of the same x, one of no rows, one with part of a matrix, one that is shared out by
// itself, and for as many formats as a group may have, each of which ends with the x that the next
// begins with.
void expect_bits_of_products(std::span<const TestKind> kinds, Precision precision) {
  constexpr int64_t kMost = 150, kOutputs = 260;
  struct Case {
    int64_t rows, cols, x, begin, end, first_row = 0, row_step = 1;
  };
  std::deque<TestMatrix> inputs;
  for (const int64_t cols : {200, 384}) inputs.emplace_back(2 * kMost, cols, cols);
  std::deque<TestWeight> weights;
  std::deque<TestMatrix> outputs;
  std::vector<LinearProduct> products;
  for (const auto [format, factors] : kinds)
    for (const auto [rows, cols, x, begin, end, first_row, row_step] : {Case{1, 200, 0, 0, 33},
                                                                        {1, 200, 0, 100, 260},
                                                                        {0, 200, 0, 0, 260},
                                                                        {9, 384, 1, 7, 7},
                                                                        {9, 384, 1, 7, 23},
                                                                        {9, 384, 1, 0, 260},
                                                                        {16, 384, 1, 16, 32},
                                                                        {16, 384, 1, 16, 32, 5},
                                                                        {16, 384, 1, 16, 32, 5, 2},
                                                                        {16, 300, 1, 16, 32, 5, 2},
                                                                        {150, 384, 1, 0, 260},
                                                                        {1, 200, 0, 40, 60}}) {
      const TestWeight& weight = weights.emplace_back(format, kOutputs, cols, factors);
      const View2<float> all = inputs[x].view;
      products.push_back({View2<const float>(all[first_row], rows, cols, row_step * all.stride),
                          weight.view.slice_rows(begin, end),
                          outputs.emplace_back(rows, end - begin, 1).view});
    }
  for (const int num_threads : {1, 2}) {
    base::set_num_threads(num_threads);
    for (const LinearProduct& product : products)
      for (int64_t m = 0; m < product.y_MN.rows; ++m)
        std::fill_n(product.y_MN[m], product.y_MN.cols, std::nanf(""));
    linear_group(products, precision);
    for (const auto& [x_MK, w_NK, y_MN] : products) {
      TestMatrix expected(y_MN.rows, y_MN.cols, 2);
      linear(x_MK, w_NK, expected.view, precision);
      for (int64_t m = 0; m < y_MN.rows && y_MN.cols > 0; ++m)
        ASSERT_EQ(std::memcmp(y_MN[m], expected.view[m], y_MN.cols * sizeof(float)), 0)
            << num_threads << " threads, row " << m << " of " << y_MN.rows;
    }
  }
  base::set_num_threads(2);
}

TEST(Linear, AGroupHasTheBitsOfItsProducts) {
  for (const auto precision : {Precision::kF32, Precision::kBF16}) {
    for (const TestKind& kind : kTestKinds) expect_bits_of_products({&kind, 1}, precision);
    expect_bits_of_products(kTestKinds, precision);
    const TestKind stored_short[] = {{WeightFormat::kBF16}, {WeightFormat::kE4M3}};
    expect_bits_of_products(stored_short, precision);
  }
  linear_group({});
  uint8_t none = 0;
  TestMatrix y(3, 5, 1);
  const LinearProduct no_columns{
      View2<const float>(nullptr, 3, 0, 0), {WeightFormat::kBF16, &none, 5, 0, nullptr, 0}, y.view};
  linear_group({&no_columns, 1}, Precision::kBF16);
  EXPECT_EQ(y.storage, std::vector<float>(15, 0.0f));
}

TEST(Gemm, EqualsReferenceInEveryOrientation) {
  for (auto [m, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                         {5, 15, 7},
                         {7, 17, 300},
                         {200, 40, 513},
                         {400, 192, 64}}) {
    const TestMatrix a(m, k, 1), a_t(k, m, 1), b(k, n, 2), b_t(n, k, 2);
    const Strided as[] = {{a.view.data, k, 1}, {a_t.view.data, 1, m}};
    const Strided bs[] = {{b.view.data, n, 1}, {b_t.view.data, 1, k}};
    for (const Strided& left : as) {
      for (const Strided& right : bs) {
        for (bool accumulate : {false, true}) {
          TestMatrix c(m, n, 3, 0, 2), expected(m, n, 3, 0, 2), serial(m, n, 3, 0, 2);
          gemm({m, n, k}, left, right, c.view, accumulate);
          gemm_serial({m, n, k}, left, right, serial.view, accumulate);
          reference::gemm({m, n, k}, left, right, expected.view, accumulate);
          EXPECT_LE(max_difference(c.view, expected.view), 4e-5 * std::sqrt(k)) << m << " " << n;
          EXPECT_EQ(max_difference(c.view, serial.view), 0.0);
        }
      }
    }
  }
}

// The oracle of a product in bf16: the operands rounded, the products summed in double.
void rounded_reference(const GemmShape& shape, const Strided& a, const Strided& b,
                       View2<float> c_MN, bool accumulate) {
  std::vector<float> left(shape.m * shape.k), right(shape.k * shape.n);
  for (int64_t m = 0; m < shape.m; ++m)
    for (int64_t k = 0; k < shape.k; ++k)
      left[m * shape.k + k] = from_bf16(to_bf16(a.data[m * a.row_stride + k * a.col_stride]));
  for (int64_t k = 0; k < shape.k; ++k)
    for (int64_t n = 0; n < shape.n; ++n)
      right[k * shape.n + n] = from_bf16(to_bf16(b.data[k * b.row_stride + n * b.col_stride]));
  reference::gemm(shape, {left.data(), shape.k, 1}, {right.data(), shape.n, 1}, c_MN, accumulate);
}

TEST(Gemm, RoundsItsOperandsToBF16WhereAsked) {
  for (auto [m, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                         {5, 15, 7},
                         {7, 17, 300},
                         {13, 70, 33},
                         {150, 130, 513},
                         {200, 65, 31},
                         {400, 192, 64}}) {
    const TestMatrix a(m, k, 1, 1, 3), a_t(k, m, 1, 3, 1), b(k, n, 2, 1, 5), b_t(n, k, 2, 0, 1);
    const Strided as[] = {{a.view.data, a.view.stride, 1}, {a_t.view.data, 1, a_t.view.stride}};
    const Strided bs[] = {{b.view.data, b.view.stride, 1}, {b_t.view.data, 1, b_t.view.stride}};
    for (const Strided& left : as) {
      for (const Strided& right : bs) {
        for (bool accumulate : {false, true}) {
          TestMatrix c(m, n, 3, 0, 2), expected(m, n, 3, 0, 2), serial(m, n, 3, 0, 2);
          const auto border = c.storage;
          gemm({m, n, k}, left, right, c.view, accumulate, Precision::kBF16);
          gemm_serial({m, n, k}, left, right, serial.view, accumulate, Precision::kBF16);
          rounded_reference({m, n, k}, left, right, expected.view, accumulate);
          EXPECT_LE(max_difference(c.view, expected.view), 4e-5 * std::sqrt(k)) << m << " " << n;
          EXPECT_EQ(max_difference(c.view, serial.view), 0.0);
          for (int64_t row = 0; row < m; ++row)  // what lies between the rows stays
            for (int64_t i = n; i < n + 2; ++i)
              EXPECT_EQ(c.view[row][i], border[row * (n + 2) + i]);
        }
      }
    }
  }
}

class GemmOfDepth : public testing::TestWithParam<int64_t> {};
TEST_P(GemmOfDepth, ARowsBitsInBF16DependOnItsRowAlone) {
  const int64_t n = 70, k = GetParam();
  const TestMatrix a(200, k, 1), b(k, n, 2);
  TestMatrix all(200, n, 3), some(40, n, 4);
  gemm({200, n, k}, {a.view.data, k, 1}, {b.view.data, n, 1}, all.view, false, Precision::kBF16);
  for (int64_t m : {0, 1, 5, 143, 144, 193})
    for (int64_t count : {1, 2, 6, 7, 17, 40}) {
      if (m + count > 200) break;
      const auto out = some.view.slice_rows(0, count);
      gemm({count, n, k}, {a.view[m], k, 1}, {b.view.data, n, 1}, out, false, Precision::kBF16);
      EXPECT_EQ(max_difference(out, all.view.slice_rows(m, m + count)), 0.0) << m;
    }
}
INSTANTIATE_TEST_SUITE_P(Depths, GemmOfDepth, testing::Values(33, 300, 700));

TEST(Gemm, TouchesNothingBehindItsOperands) {
  for (auto [m, n, k] :
       {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {16, 32, 32}, {33, 17, 70}})
    for (const bool is_turned : {false, true}) {
      TestMatrix a(m, k, 1), b(k, n, 2), c(m, n, 3), expected(m, n, 3);
      const auto strides = [&](const float* data, int64_t rows, int64_t cols) {
        return is_turned ? Strided{data, 1, rows} : Strided{data, cols, 1};
      };
      gemm({m, n, k}, strides(a.view.data, m, k), strides(b.view.data, k, n), expected.view, true,
           Precision::kBF16);
      const GuardedCopy a_copy(a.storage.data(), m * k * sizeof(float));
      const GuardedCopy b_copy(b.storage.data(), k * n * sizeof(float));
      const GuardedCopy c_copy(c.storage.data(), m * n * sizeof(float));
      const View2<float> out(c_copy.as<float>(), m, n, n);
      gemm({m, n, k}, strides(a_copy.as<float>(), m, k), strides(b_copy.as<float>(), k, n), out,
           true, Precision::kBF16);
      EXPECT_EQ(max_difference(out, expected.view), 0.0) << m << " " << n << " " << k;
    }
}

TEST(Gemm, OfNothingAddsNothing) {
  for (const auto precision : {Precision::kF32, Precision::kBF16})
    for (const bool accumulate : {false, true}) {
      TestMatrix a(40, 8, 1), b(8, 20, 2), c(40, 20, 3);
      std::fill(c.storage.begin(), c.storage.end(), 2.0f);
      gemm({40, 20, 0}, {a.view.data, 8, 1}, {b.view.data, 20, 1}, c.view, accumulate, precision);
      for (const float value : c.storage) ASSERT_EQ(value, accumulate ? 2.0f : 0.0f);
      gemm({0, 20, 8}, {a.view.data, 8, 1}, {b.view.data, 20, 1}, c.view.slice_rows(0, 0),
           accumulate, precision);
      gemm({40, 0, 8}, {a.view.data, 8, 1}, {b.view.data, 20, 1},
           View2<float>(c.view.data, 40, 0, 20), accumulate, precision);
      for (const float value : c.storage) ASSERT_EQ(value, accumulate ? 2.0f : 0.0f);
    }
}

TEST(Gemm, TransposedLinearUndoesTheLayoutOnly) {
  const TestWeight weight(WeightFormat::kE4M3, 96, 130);
  std::vector<float> wide(96 * 130);
  widen_rows(weight.view, 0, 96, wide.data());
  const TestMatrix x(3, 96, 4);
  TestMatrix y(3, 130, 5), expected(3, 130, 6);
  linear_transposed(x.view, weight.view, y.view);
  reference::gemm({3, 130, 96}, {x.view.data, 96, 1}, {wide.data(), 130, 1}, expected.view, false);
  EXPECT_LE(max_difference(y.view, expected.view), 2e-4);
}

TEST(Gemm, TransposedLinearOfFewRowsHasTheBitsOfMany) {
  for (const WeightFormat format : {WeightFormat::kE4M3, WeightFormat::kBF16, WeightFormat::kF32})
    for (const auto& [rows, cols] :
         {std::pair(96, 130), {128, 512}, {300, 75}, {1, 1}, {700, 16}}) {
      const TestWeight weight(format, rows + 40, cols);
      const auto slice = weight.view.slice_rows(40, rows + 40);
      const TestMatrix x(7, rows, 4);
      TestMatrix all(7, cols, 5);
      linear_transposed(x.view, slice, all.view);
      for (int64_t count = 1; count <= 3; ++count) {
        TestMatrix few(count, cols, 6);
        for (int64_t m = 0; m + count <= 7; ++m) {
          linear_transposed(x.view.slice_rows(m, m + count), slice, few.view);
          EXPECT_EQ(max_difference(few.view, all.view.slice_rows(m, m + count)), 0)
              << rows << " " << m << " " << count;
        }
      }
    }
}

}  // namespace
}  // namespace fathom::kernels
