// Dot products of bf16 pairs with f32 sums (AVX512-BF16), where the processor has them: products of
// bf16 are exact in f32, so only the order of the sums differs from the f32 kernels. Subnormal
// inputs and sums count as zero.
//
// A BF16_KERNEL function may use them; callers ask has_bf16_dot() first. Its helpers are
// BF16_INLINE; parallel loops stay outside, as with KERNEL.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <initializer_list>

#include "kernels/simd.h"

#if defined(__x86_64__) && !defined(FATHOM_NO_BF16_KERNELS)
#include <immintrin.h>
#define FATHOM_HAS_BF16_KERNELS 1
#define BF16_KERNEL __attribute__((target("arch=x86-64-v4,avx512bf16,avx512vbmi")))
#define BF16_INLINE BF16_KERNEL inline __attribute__((always_inline))
#else
#define FATHOM_HAS_BF16_KERNELS 0
#endif

namespace fathom::kernels {

// Whether this processor runs BF16_KERNEL functions. FATHOM_NO_BF16 in the environment says no, so
// that both ways can be tested and measured on one machine; so does a build whose other kernels do
// not fuse multiplication and addition.
inline bool has_bf16_dot() {
#if FATHOM_HAS_BF16_KERNELS
  static const bool has = __builtin_cpu_supports("avx512bf16") &&
                          __builtin_cpu_supports("avx512vbmi") &&
                          __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bw") && !std::getenv("FATHOM_NO_BF16");
  return has;
#else
  return false;
#endif
}

#if FATHOM_HAS_BF16_KERNELS

// The first `count` of sixteen lanes: none below 1, all from 16 on.
BF16_INLINE __mmask16 first_lanes(int64_t count) {
  if (count >= 16) return 0xffff;
  return count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// sum[lane] += a[2 lane] b[2 lane] + a[2 lane + 1] b[2 lane + 1], of bf16 pairs in 32-bit lanes.
BF16_INLINE __m512 dot_pairs(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// Thirty-two f32 rounded to bf16 (nearest even), in order: lane i holds elements 2i and 2i + 1.
BF16_INLINE __m512i round_to_pairs(__m512 low, __m512 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

// Sixteen f32 rounded to bf16, in order: 32 bytes.
BF16_INLINE void store_rounded(__m512 values, void* out) {
  _mm256_storeu_si256(static_cast<__m256i*>(out),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
}

// `count` f32 rounded to bf16, then zeros up to `padded`, a multiple of 32.
BF16_INLINE void round_row(const float* x, int64_t count, int64_t padded, void* out) {
  for (int64_t i = 0; i < padded; i += 32)
    _mm512_storeu_si512(
        static_cast<uint16_t*>(out) + i,
        round_to_pairs(_mm512_maskz_loadu_ps(first_lanes(count - i), x + i),
                       _mm512_maskz_loadu_ps(first_lanes(count - i - 16), x + i + 16)));
}

// Lane i holds (even[i], odd[i]), rounded to bf16.
BF16_INLINE __m512i round_to_pairs_of_rows(__m512 even, __m512 odd) {
  const __m512i interleave =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                       23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(interleave, round_to_pairs(even, odd));
}

// For permutex2var_epi16: the first and the last sixteen columns of two rows, by pairs.
BF16_INLINE __m512i low_pairs_of_rows() {
  return _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
                          39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
}
BF16_INLINE __m512i high_pairs_of_rows() {
  return _mm512_add_epi16(low_pairs_of_rows(), _mm512_set1_epi16(16));
}

// Sixteen rows of sixteen 32-bit lanes become columns.
BF16_INLINE void transpose_lanes(__m512i (&row)[16]) {
  __m512i pair[16], quad[16], half[16];
  for (int i = 0; i < 16; i += 2) {
    pair[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    pair[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    quad[i] = _mm512_unpacklo_epi64(pair[i], pair[i + 2]);
    quad[i + 1] = _mm512_unpackhi_epi64(pair[i], pair[i + 2]);
    quad[i + 2] = _mm512_unpacklo_epi64(pair[i + 1], pair[i + 3]);
    quad[i + 3] = _mm512_unpackhi_epi64(pair[i + 1], pair[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    half[i] = _mm512_shuffle_i32x4(quad[i], quad[i + 4], 0x88);
    half[i + 4] = _mm512_shuffle_i32x4(quad[i], quad[i + 4], 0xdd);
    half[i + 8] = _mm512_shuffle_i32x4(quad[i + 8], quad[i + 12], 0x88);
    half[i + 12] = _mm512_shuffle_i32x4(quad[i + 8], quad[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    row[i] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0x88);
    row[i + 4] = _mm512_shuffle_i32x4(half[i + 4], half[i + 12], 0x88);
    row[i + 8] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0xdd);
    row[i + 12] = _mm512_shuffle_i32x4(half[i + 4], half[i + 12], 0xdd);
  }
}

// Bytes of e4m3 as bf16, exactly, by table: bits 0 to 6 choose the number, bit 7 is its sign.
struct E4M3Table {
  alignas(64) uint8_t high[128];
  alignas(64) uint8_t low[128];
};
constexpr E4M3Table make_e4m3_bf16_table() {
  E4M3Table table{};
  for (int bits = 0; bits < 128; ++bits) {
    int exponent = (bits >> 3) + 120, mantissa = bits & 7;
    if (bits < 8) {  // subnormal: mantissa * 2^-9
      exponent = mantissa == 0 ? 0 : 121;
      while (mantissa != 0 && !(mantissa & 8)) mantissa <<= 1, --exponent;
    }
    const int bf16 = bits == 127 ? 0x7fc0 : exponent << 7 | (mantissa & 7) << 4;
    table.high[bits] = static_cast<uint8_t>(bf16 >> 8);
    table.low[bits] = static_cast<uint8_t>(bf16 & 255);
  }
  return table;
}
inline constexpr E4M3Table kE4M3ToBF16 = make_e4m3_bf16_table();

// The table in registers.
struct E4M3Widener {
  __m512i high0, high1, low0, low1;
};
BF16_INLINE E4M3Widener e4m3_widener() {
  return {_mm512_load_si512(kE4M3ToBF16.high), _mm512_load_si512(kE4M3ToBF16.high + 64),
          _mm512_load_si512(kE4M3ToBF16.low), _mm512_load_si512(kE4M3ToBF16.low + 64)};
}

// Sixty-four bytes. Each 128-bit part of out[0] holds the first eight numbers of that part of
// `bytes`, of out[1] the last eight: 0 to 7, 16 to 23, ... and 8 to 15, 24 to 31, ...
BF16_INLINE void widen_e4m3_parts(const E4M3Widener& table, __m512i bytes, __m512i (&out)[2]) {
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m512i low = _mm512_permutex2var_epi8(table.low0, bytes, table.low1);
  const __m512i high = _mm512_ternarylogic_epi64(
      _mm512_permutex2var_epi8(table.high0, bytes, table.high1), bytes, sign, 0xf8);  // a | b & c
  out[0] = _mm512_unpacklo_epi8(low, high);
  out[1] = _mm512_unpackhi_epi8(low, high);
}

// The same in order: out[0] holds numbers 0 to 31.
BF16_INLINE void widen_e4m3(const E4M3Widener& table, __m512i bytes, __m512i (&out)[2]) {
  const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
  widen_e4m3_parts(table, _mm512_permutexvar_epi64(order, bytes), out);
}

// simd.h's exp for sixteen lanes, the same bits.
BF16_INLINE __m512 exp(__m512 x) {
  const __m512 clamped =
      _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.5f)), _mm512_set1_ps(88.5f));
  const __m512 magic = _mm512_set1_ps(12582912.0f);
  const __m512 n = _mm512_fmadd_ps(clamped, _mm512_set1_ps(1.44269504f), magic) - magic;
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), clamped);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (const float c :
       {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  p = _mm512_fmadd_ps(p * r, r, r) + _mm512_set1_ps(1.0f);
  const __m512i whole = _mm512_cvttps_epi32(n), half = _mm512_srai_epi32(whole, 1);
  const __m512i bias = _mm512_set1_epi32(127);
  const __m512 scale_a = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(half, bias), 23));
  const __m512 scale_b = _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(whole, half), bias), 23));
  const __mmask16 is_small = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.5f), _CMP_LT_OQ);
  const __mmask16 is_large = _mm512_cmp_ps_mask(x, _mm512_set1_ps(88.5f), _CMP_GT_OQ);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  __m512 result = _mm512_maskz_mov_ps(static_cast<__mmask16>(~is_small), p * scale_a * scale_b);
  result = _mm512_mask_mov_ps(result, is_large, _mm512_set1_ps(__builtin_inff()));
  return _mm512_mask_mov_ps(result, is_nan, x);
}

// e^x for x <= 0, to 3e-7 of it: 2^n 2^f with a polynomial for f in [-1/2, 1/2] (Cephes' exp2f
// coefficients). A larger x costs accuracy as its size does.
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

// score * scale - lse, never above 0. The product is rounded, as lse's was: fused with the
// difference it would keep what lse has lost, which for large scores is more than an exponential
// takes.
BF16_INLINE __m512 log_probability(__m512 score, __m512 scale, __m512 lse) {
  __m512 scaled = _mm512_mul_ps(score, scale);
  asm("" : "+v"(scaled));
  // In this order the minimum of NaN is NaN.
  return _mm512_min_ps(_mm512_setzero_ps(), _mm512_sub_ps(scaled, lse));
}

#endif

}  // namespace fathom::kernels
