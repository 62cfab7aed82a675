// What the bf16 forms of sparse_mla share: rows of the cache widened to bf16, the rows that come
// next, and the softmax's exponential.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/bf16_dot.h"
#include "kernels/fp8.h"
#include "kernels/sparse_mla.h"

#if FATHOM_HAS_BF16_KERNELS

namespace fathom::kernels {

BF16_INLINE __mmask32 first_halves(int64_t count) {
  return count >= 32 ? ~0u : (1u << std::max<int64_t>(count, 0)) - 1;
}

// bf16 numbers * 2^exponent; zeros and NaNs stay.
BF16_INLINE __m512i scale_bf16(__m512i numbers, int exponent) {
  const __m512i magnitude = _mm512_and_si512(numbers, _mm512_set1_epi16(0x7fff));
  const __mmask32 is_number = _mm512_mask_cmplt_epi16_mask(
      _mm512_test_epi16_mask(magnitude, magnitude), magnitude, _mm512_set1_epi16(0x7f80));
  return _mm512_mask_add_epi16(numbers, is_number, numbers,
                               _mm512_set1_epi16(static_cast<int16_t>(exponent << 7)));
}

BF16_INLINE void copy_bf16(const std::byte* from, int64_t count, uint16_t* to) {
  for (int64_t x = 0; x < count; x += 32) {
    const __mmask32 mask = first_halves(count - x);
    _mm512_mask_storeu_epi16(to + x, mask, _mm512_maskz_loadu_epi16(mask, from + 2 * x));
  }
}

// A row as bf16, zeros behind it up to `width`. FP8's power-of-two scales go to the exponents.
BF16_INLINE void widen_to_bf16(const RowLayout& layout, const std::byte* row, int64_t width,
                               uint16_t* out) {
  const int64_t dim = layout.dim();
  for (int64_t x = dim; x < width; x += 32)
    _mm512_mask_storeu_epi16(out + x, first_halves(width - x), _mm512_setzero_si512());
  if (layout.format == RowFormat::kBF16) {
    copy_bf16(row, dim, out);
    return;
  }
  constexpr int64_t kWidened = 64;
  const E4M3Widener table = e4m3_widener();
  const std::byte* const scales = row + layout.quantised;
  for (int64_t x = 0; x < layout.quantised; x += kWidened) {
    const int64_t count = layout.quantised - x;
    const __mmask64 mask = count >= kWidened ? ~0ull : (1ull << count) - 1;
    uint32_t scale;
    std::memcpy(&scale, scales + x / kQuantGroup * sizeof scale, sizeof scale);
    __m512i wide[2];
    widen_e4m3(table, _mm512_maskz_loadu_epi8(mask, row + x), wide);
    for (int i = 0; i < 2; ++i)
      _mm512_mask_storeu_epi16(out + x + 32 * i, first_halves(count - 32 * i),
                               scale_bf16(wide[i], static_cast<int>(scale >> 23) - 127));
  }
  const int64_t groups = (layout.quantised + kQuantGroup - 1) / kQuantGroup;
  copy_bf16(scales + groups * sizeof(float), layout.exact, out + layout.quantised);
}

inline const std::byte* row_of(const SparseMla& io, int64_t i) {
  return io.latent_SD[io.keys ? io.keys[i] : i];
}

// Rows that are gathered next, asked for early.
struct Ahead {
  const SparseMla& io;
  int64_t next, end;

  void fetch(int64_t count) {
    const int64_t bytes = io.latent_SD.layout.num_bytes();
    for (const int64_t stop = std::min(next + count, end); next < stop; ++next)
      for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row_of(io, next) + at);
  }
};

}  // namespace fathom::kernels

#endif
