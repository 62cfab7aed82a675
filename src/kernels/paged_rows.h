// What a token leaves behind for attention to gather in one layer, a row of bytes in a page: the
// latent KV. (index_key_pages.h has the lightning indexer's keys.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "base/check.h"

namespace fathom::kernels {

enum class RowFormat { kF32, kBF16, kFP8 };
inline constexpr std::pair<std::string_view, RowFormat> kRowFormats[] = {
    {"f32", RowFormat::kF32}, {"bf16", RowFormat::kBF16}, {"fp8", RowFormat::kFP8}};

// A row's values: first `quantised` of them, which kFP8 stores as e4m3 with one f32 power-of-two
// scale a group of 128 (values, then scales), then `exact` ones (the rotary part), which kFP8
// stores in bf16. At V3.2's shape kFP8 takes 512 + 16 + 128 = 656 bytes.
struct RowLayout {
  RowFormat format = RowFormat::kF32;
  int64_t quantised = 0;
  int64_t exact = 0;

  int64_t dim() const { return quantised + exact; }
  // Inline: it is asked for at every row.
  int64_t num_bytes() const {
    if (format == RowFormat::kF32) return dim() * 4;
    if (format == RowFormat::kBF16) return dim() * 2;
    return quantised + 4 * ((quantised + 127) / 128) + 2 * exact;
  }
};

inline constexpr int64_t kPageRows = 64;

// Row s lies in page s / 64. Pages are full but the last; they may be shared between sequences.
struct PagedRows {
  RowLayout layout;
  const std::byte* const* pages = nullptr;
  int64_t num_rows = 0;

  const std::byte* operator[](int64_t s) const {
    return pages[s / kPageRows] + s % kPageRows * layout.num_bytes();
  }
};

// Writes layout.dim() values as a row. kBF16 rounds to nearest even; kFP8 as quantise_activations
// does: values that went through it already are stored exactly.
void store_row(const RowLayout& layout, const float* values, std::byte* row);

// The row's values as f32, exactly as stored.
void widen_row(const RowLayout& layout, const std::byte* row, float* values);

}  // namespace fathom::kernels
