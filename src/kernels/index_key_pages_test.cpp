#include "kernels/index_key_pages.h"

#include <gtest/gtest.h>

#include "kernels/fp8.h"
#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

constexpr RowFormat kFormats[] = {RowFormat::kF32, RowFormat::kBF16, RowFormat::kFP8};

TEST(IndexKeyLayout, BytesOfARealKey) {
  EXPECT_EQ((IndexKeyLayout{RowFormat::kFP8, 128}).num_bytes(), 132);
  EXPECT_EQ((IndexKeyLayout{RowFormat::kBF16, 128}).num_bytes(), 256);
  EXPECT_EQ((IndexKeyLayout{RowFormat::kF32, 128}).num_bytes(), 512);
}

// The oracle is a row of the other cache, whose formats they are.
TEST(IndexKeyPages, HoldWhatARowHolds) {
  for (const int64_t dim : {1, 5, 64, 128, 131, 260})
    for (const RowFormat format : kFormats) {
      const TestMatrix values(70, dim, 1);
      const TestIndexKeys index_keys(values.view, {format, dim});
      const TestPages rows(values.view, {format, dim, 0});
      TestMatrix expected(70, dim, 2), key(1, dim, 3), page(dim, kPageRows, 4);
      for (int64_t s = 0; s < 70; ++s) {
        widen_row(rows.rows.layout, rows.rows[s], expected.view[s]);
        widen_index_key(index_keys.keys.layout, index_keys.pages[s / kPageRows], s % kPageRows,
                        key.view[0]);
        for (int64_t x = 0; x < dim; ++x)
          ASSERT_EQ(key.view[0][x], expected.view[s][x]) << dim << " " << s << " " << x;
      }
      for (int64_t s = 0; s < 70; ++s) {
        if (s % kPageRows == 0)
          widen_index_page(index_keys.keys.layout, index_keys.pages[s / kPageRows],
                           page.storage.data());
        for (int64_t x = 0; x < dim; ++x)
          ASSERT_EQ(page.view[x][s % kPageRows], expected.view[s][x]) << dim << " " << s;
      }
    }
}

TEST(IndexKeyPages, WidenEveryE4m3Byte) {
  const IndexKeyLayout layout{RowFormat::kFP8, 4};
  std::vector<std::byte> bytes(layout.page_bytes());
  for (int i = 0; i < 256; ++i) bytes[i] = std::byte(i);  // [2 pairs][64 keys][2]
  std::vector<float> scales(kPageRows, 0.25f), page(4 * kPageRows);
  std::memcpy(bytes.data() + layout.scales_offset(), scales.data(), kPageRows * sizeof(float));
  widen_index_page(layout, bytes.data(), page.data());
  for (int i = 0; i < 256; ++i) {
    if ((i & 127) == 127) continue;  // NaN
    const int64_t x = i / 128 * 2 + i % 2, s = i % 128 / 2;
    ASSERT_EQ(page[x * kPageRows + s], from_e4m3(static_cast<uint8_t>(i)) * 0.25f) << i;
  }
}

// Keys are written one by one into pages that others read.
TEST(IndexKeyPages, StoringAKeyChangesNoOther) {
  for (const RowFormat format : kFormats) {
    const int64_t dim = 7;
    const TestMatrix values(kPageRows, dim, 1), other(1, dim, 2);
    const TestIndexKeys before(values.view, {format, dim});
    TestIndexKeys after(values.view, {format, dim});
    store_index_key(after.keys.layout, other.view[0], 37, after.storage[0].data());
    std::vector<float> kept(dim), now(dim);
    for (int64_t s = 0; s < kPageRows; ++s) {
      widen_index_key(before.keys.layout, before.pages[0], s, kept.data());
      widen_index_key(after.keys.layout, after.pages[0], s, now.data());
      ASSERT_EQ(kept == now, s != 37) << s;
    }
  }
}

}  // namespace
}  // namespace fathom::kernels
