#include "bench/linear.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "bench/library_linear.h"

namespace fathom::bench {
namespace {

TEST(BenchLinear, EveryMatrixAndNumberOfRowsHasRatesThatAgree) {
  LinearOptions options;
  options.rows = {1, 9};
  options.buffer_mbyte = 118;
  const Json figures = measure_linear(options);
  EXPECT_EQ(figures["matrices"].size(), 5u);
  const double bandwidth = figures["machine"]["read_gbyte_per_s"];
  for (const auto& [name, by_rows] : figures["matrices"].items())
    for (const int64_t rows : options.rows) {
      const Json& rates = by_rows.at(std::to_string(rows));
      const double gbyte_per_s = rates["read_gbyte_per_s"];
      EXPECT_NEAR(rates["share_of_read_bandwidth"], gbyte_per_s / bandwidth, 1e-9) << name;
      EXPECT_NEAR(rates["gflop_per_s"], 2.0 * static_cast<double>(rows) * gbyte_per_s, 1e-6);
      // More would mean that not all was computed.
      EXPECT_LT(rates["share_of_peak"], 1.0) << name << " " << rows;
    }
  // o_proj has ten times the bytes of q_a_proj.
  EXPECT_GT(figures["matrices"]["o_proj"]["9"]["ms"], figures["matrices"]["q_a_proj"]["9"]["ms"]);
}

TEST(BenchLinear, ABufferThatHoldsNoMatrixIsRefused) {
  LinearOptions options;
  options.buffer_mbyte = 100;
  try {
    measure_linear(options);
    FAIL() << "not refused";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "100 MB of weights do not hold o_proj: ask for 118 with --buffer-mbyte");
  }
}

// Sums of thousands of products of bf16 numbers, in two orders.
TEST(BenchLibraryLinear, OursAndTheLibraryComputeTheSame) {
  const Json figures = measure_library_linear({.rows = {3}, .repeats = 1});
  EXPECT_EQ(figures["matrices"].size(), 4u);
  for (const auto& [name, by_rows] : figures["matrices"].items()) {
    EXPECT_LT(by_rows["3"]["largest_difference_from_f32"], 2e-3) << name;
    EXPECT_GT(by_rows["3"]["times_fastest_library"], 0.0) << name;
  }
}

}  // namespace
}  // namespace fathom::bench
