// Dot products by octets of bf16: a register holds eight consecutive k of four rows, a row's four
// pairs side by side. The other operand's octet is broadcast to all; in the end each row's four
// lanes are added. Rows need only be dealt out in quarters of a register, not transposed.
#pragma once

#include "kernels/bf16_dot.h"

#if FATHOM_HAS_BF16_KERNELS

namespace fathom::kernels {

inline constexpr int64_t kOctet = 8;
// Rows of four registers: part p of register v is row 4p + v.
inline constexpr int64_t kOctetRows = 16;

// Four rows of four 128-bit parts become columns.
BF16_INLINE void transpose_parts(__m512i (&row)[4]) {
  const __m512i even01 = _mm512_shuffle_i32x4(row[0], row[1], 0x88);
  const __m512i odd01 = _mm512_shuffle_i32x4(row[0], row[1], 0xdd);
  const __m512i even23 = _mm512_shuffle_i32x4(row[2], row[3], 0x88);
  const __m512i odd23 = _mm512_shuffle_i32x4(row[2], row[3], 0xdd);
  row[0] = _mm512_shuffle_i32x4(even01, even23, 0x88);
  row[1] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
  row[2] = _mm512_shuffle_i32x4(even01, even23, 0xdd);
  row[3] = _mm512_shuffle_i32x4(odd01, odd23, 0xdd);
}

BF16_INLINE __m512i broadcast_octet(const void* x) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(x)));
}

// Each row's four lanes, first and third, second and fourth: the sums of sixteen rows, in order.
BF16_INLINE __m512 add_lanes(const __m512 (&v)[4]) {
  const __m512d v01 =
      _mm512_castps_pd(_mm512_unpacklo_ps(v[0], v[1]) + _mm512_unpackhi_ps(v[0], v[1]));
  const __m512d v23 =
      _mm512_castps_pd(_mm512_unpacklo_ps(v[2], v[3]) + _mm512_unpackhi_ps(v[2], v[3]));
  return _mm512_castpd_ps(_mm512_unpacklo_pd(v01, v23)) +
         _mm512_castpd_ps(_mm512_unpackhi_pd(v01, v23));
}

}  // namespace fathom::kernels

#endif
