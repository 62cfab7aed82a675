// The lightning indexer's keys of one layer, in pages of 64: the keys of a page side by side, as
// their products with queries' heads take them. Kernels widen them and transpose nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/fp8.h"
#include "kernels/paged_rows.h"

namespace fathom::kernels {

// A page holds kF32's numbers as [X][64 keys]; kBF16's and kFP8's (e4m3) as pairs, as dot products
// of bf16 take them, [X / 2][64 keys][2], an odd X with a zero behind it. kFP8 then has f32
// power-of-two scales, [X / 128][64]: 128 + 4 = 132 bytes a key at V3.2's shape.
struct IndexKeyLayout {
  RowFormat format = RowFormat::kF32;
  int64_t dim = 0;

  int64_t num_pairs() const { return (dim + 1) / 2; }
  int64_t num_groups() const { return (dim + kQuantGroup - 1) / kQuantGroup; }
  int64_t num_bytes() const {  // of a key
    if (format == RowFormat::kF32) return dim * 4;
    if (format == RowFormat::kBF16) return num_pairs() * 4;
    return num_pairs() * 2 + num_groups() * 4;
  }
  int64_t page_bytes() const { return kPageRows * num_bytes(); }
  // From a page's beginning to its scales.
  int64_t scales_offset() const { return kPageRows * num_pairs() * 2; }
};

// Key s lies in page s / 64, the last of which is as large as the others.
struct IndexKeyPages {
  IndexKeyLayout layout;
  const std::byte* const* pages = nullptr;
  int64_t num_keys = 0;

  const std::byte* page_of(int64_t s) const { return pages[s / kPageRows]; }
};

// Writes layout.dim numbers as the page's key number `slot`, as store_row() does a row; nothing
// else in the page changes.
void store_index_key(const IndexKeyLayout& layout, const float* values, int64_t slot,
                     std::byte* page);

// The key's numbers as f32, exactly as stored, NaN included.
void widen_index_key(const IndexKeyLayout& layout, const std::byte* page, int64_t slot,
                     float* values);

// A whole page as f32: values_XS is [dim][64]. NaN of e4m3, which only a broken model stores, reads
// as +-480 here, as load_e4m3() has it.
void widen_index_page(const IndexKeyLayout& layout, const std::byte* page, float* values_XS);

}  // namespace fathom::kernels
