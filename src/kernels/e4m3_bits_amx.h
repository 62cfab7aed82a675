// Bytes of e4m3 as bf16 by products of bits (GFNI), which processors with AMX have: half the work
// of bf16_dot.h's look-up, the same bits.
#pragma once

#include "kernels/amx_tile.h"
#include "kernels/bf16_dot.h"

#if FATHOM_HAS_AMX_KERNELS

namespace fathom::kernels {

// A normal number's bf16 is its bits in other places, which is a product with a matrix of bits: the
// low byte is (e0, m2, m1, m0, 0...), the high one (sign, e3, not e3 four times, e2, e1), its
// exponent greater by 120. Zeros, subnormal numbers and NaN are looked up.
struct E4M3BitWidener {
  __m512i low_matrix, high_matrix, low_table, high_table;
};
AMX_INLINE E4M3BitWidener e4m3_bit_widener() {
  alignas(16) uint8_t low[16], high[16];
  for (int i = 0; i < 16; ++i) {
    const int bits = i < 8 ? i : 127;  // only NaN has other bits and comes here
    low[i] = kE4M3ToBF16.low[bits];
    high[i] = kE4M3ToBF16.high[bits];
  }
  return {_mm512_set1_epi64(0x0000000001020408), _mm512_set1_epi64(0x1020404040404080),
          _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(low))),
          _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(high)))};
}

AMX_INLINE __m512i low_nibbles(__m512i bytes) {
  return _mm512_and_si512(bytes, _mm512_set1_epi8(15));
}

// Of numbers in bf16, which have an exponent to add to: not zeros, not NaN.
AMX_INLINE __mmask32 has_exponent(__m512i words) {
  const __m512i magnitude = _mm512_and_si512(words, _mm512_set1_epi16(0x7fff));
  return _mm512_cmplt_epu16_mask(_mm512_sub_epi16(magnitude, _mm512_set1_epi16(1)),
                                 _mm512_set1_epi16(0x7f80 - 1));
}

// widen_e4m3_parts of two registers, the same bits; then, if asked, times the power of two whose
// exponent stands where a bf16 has it.
template <bool kIsScaled>
AMX_INLINE void widen_e4m3_bits(const E4M3BitWidener& table, __m512i exponent,
                                const __m512i (&bytes)[2], __m512i (&out)[2][2]) {
  __m512i low[2], high[2], rank[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    low[i] = _mm512_gf2p8affine_epi64_epi8(bytes[i], table.low_matrix, 0);
    high[i] = _mm512_gf2p8affine_epi64_epi8(bytes[i], table.high_matrix, 0x3c);
    // At most 16 where the exponent is zero or the number is NaN.
    rank[i] = _mm512_add_epi8(_mm512_add_epi8(bytes[i], bytes[i]), _mm512_set1_epi8(2));
  }
  const __m512i limit = _mm512_set1_epi8(16);
  const bool is_special = _mm512_cmple_epu8_mask(_mm512_min_epu8(rank[0], rank[1]), limit) != 0;
  if (is_special) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __mmask64 specials = _mm512_cmple_epu8_mask(rank[i], limit);
      const __m512i sign = _mm512_and_si512(bytes[i], _mm512_set1_epi8(-128));
      low[i] = _mm512_mask_shuffle_epi8(low[i], specials, table.low_table, low_nibbles(bytes[i]));
      const __m512i magnitude = _mm512_shuffle_epi8(table.high_table, low_nibbles(bytes[i]));
      high[i] = _mm512_mask_blend_epi8(specials, high[i], _mm512_or_si512(magnitude, sign));
    }
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    out[i][0] = _mm512_unpacklo_epi8(low[i], high[i]);
    out[i][1] = _mm512_unpackhi_epi8(low[i], high[i]);
  }
  if constexpr (kIsScaled) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      __m512i& words = out[i / 2][i % 2];
      words = is_special ? _mm512_mask_add_epi16(words, has_exponent(words), words, exponent)
                         : _mm512_add_epi16(words, exponent);
    }
  }
}

}  // namespace fathom::kernels

#endif
