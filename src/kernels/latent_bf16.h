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

// e^x for x <= 0, to 3e-7 of it: 2^n 2^f with a polynomial for f in [-1/2, 1/2] (Cephes' exp2f
// coefficients).
BF16_INLINE __m512 exp_negative(__m512 x) {
  // In this order the maximum of NaN is NaN.
  const __m512 y =
      _mm512_max_ps(_mm512_set1_ps(-150.0f), _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)));
  const __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(y, n);
  __m512 e = _mm512_set1_ps(1.535336188319500e-4f);
  e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(1.339887440266574e-3f));
  e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(9.618437357674640e-3f));
  e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(5.550332471162809e-2f));
  e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(2.402264791363012e-1f));
  e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(6.931472028550421e-1f));
  e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(e, n);
}

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

// For permutex2var_epi16: the first and the last sixteen columns of two rows, by pairs.
BF16_INLINE __m512i low_pairs_of_rows() {
  return _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
                          39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
}
BF16_INLINE __m512i high_pairs_of_rows() {
  return _mm512_add_epi16(low_pairs_of_rows(), _mm512_set1_epi16(16));
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
