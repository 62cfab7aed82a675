#include "kernels/paged_rows.h"

#include <gtest/gtest.h>

#include "kernels/fp8.h"
#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

TEST(RowLayout, BytesOfARealToken) {
  EXPECT_EQ((RowLayout{RowFormat::kFP8, 512, 64}).num_bytes(), 656);
  EXPECT_EQ((RowLayout{RowFormat::kBF16, 512, 64}).num_bytes(), 1152);
}

TEST(PagedRows, HoldWhatTheirFormatCanSay) {
  for (auto [quantised, exact] : {std::pair<int64_t, int64_t>{512, 64}, {130, 7}, {33, 0}}) {
    const int64_t dim = quantised + exact;
    const TestMatrix values(70, dim, 1);
    std::vector<float> bf16(dim), fp8(dim), stored(dim);
    const TestPages f32_pages(values.view, {RowFormat::kF32, quantised, exact});
    const TestPages bf16_pages(values.view, {RowFormat::kBF16, quantised, exact});
    const TestPages fp8_pages(values.view, {RowFormat::kFP8, quantised, exact});
    for (int64_t s = 0; s < 70; ++s) {
      const std::vector<float> row(values.view[s], values.view[s] + dim);
      round_to_bf16(row, bf16);
      fp8 = bf16;
      round_through_fp8({row.data(), 1, quantised}, {fp8.data(), 1, quantised});
      widen_row(f32_pages.rows.layout, f32_pages.rows[s], stored.data());
      EXPECT_EQ(stored, row);
      widen_row(bf16_pages.rows.layout, bf16_pages.rows[s], stored.data());
      EXPECT_EQ(stored, bf16);
      widen_row(fp8_pages.rows.layout, fp8_pages.rows[s], stored.data());
      EXPECT_EQ(stored, fp8);
    }
  }
}

// What deploy mode has quantised already passes through an FP8 cache untouched.
TEST(PagedRows, StoringAnFp8ValueAgainIsExact) {
  const int64_t dim = 256;
  const TestMatrix values(64, dim, 2);
  TestMatrix once(64, dim, 3);
  round_through_fp8(values.view, once.view);
  const TestPages pages(once.view, {RowFormat::kFP8, dim, 0});
  std::vector<float> stored(dim);
  for (int64_t s = 0; s < 64; ++s) {
    widen_row(pages.rows.layout, pages.rows[s], stored.data());
    for (int64_t i = 0; i < dim; ++i) ASSERT_EQ(stored[i], once.view[s][i]);
  }
}

TEST(PagedRows, WidensEveryE4m3Byte) {
  const RowLayout layout{RowFormat::kFP8, 16, 0};
  for (int first = 0; first < 256; first += 16) {
    std::vector<std::byte> row(layout.num_bytes());
    for (int i = 0; i < 16; ++i) row[i] = std::byte(first + i);
    const float scale = 0.25f;
    std::memcpy(row.data() + 16, &scale, sizeof scale);
    float values[16];
    widen_row(layout, row.data(), values);
    for (int i = 0; i < 16; ++i) {
      const float expected = from_e4m3(static_cast<uint8_t>(first + i));
      if (std::isnan(expected)) continue;
      EXPECT_EQ(values[i], expected * scale) << first + i;
    }
  }
}

}  // namespace
}  // namespace fathom::kernels
