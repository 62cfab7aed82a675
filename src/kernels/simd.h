// Eight f32 lanes as a GCC vector, and the attribute that compiles a kernel twice.
//
// The chapter is compiled for FATHOM_KERNEL_ARCH (x86-64-v3: AVX2 and FMA); KERNEL functions exist
// for x86-64-v4 (AVX-512) too and the loader picks. Both use eight lanes in the same order and give
// the same bits. Parallel loops stay outside: a lambda would not inherit the attribute. Helpers are
// FATHOM_INLINE, so that they are compiled with their caller's instructions. (A clone below the
// baseline does not work: GCC splits wide vectors by the baseline before it inlines.)
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__AVX2__)
#define KERNEL __attribute__((target_clones("arch=x86-64-v4", "default")))
#else
#define KERNEL
#endif
#define FATHOM_INLINE inline __attribute__((always_inline))

namespace fathom::kernels {

inline constexpr int64_t kLanes = 8;
typedef float F32x8 __attribute__((vector_size(32)));
typedef int32_t I32x8 __attribute__((vector_size(32)));

FATHOM_INLINE F32x8 load(const float* p) {
  F32x8 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The first `count` < 8 lanes; the others are zero.
FATHOM_INLINE F32x8 load_partial(const float* p, int64_t count) {
  F32x8 v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

FATHOM_INLINE F32x8 load_bf16(const uint16_t* p) {
  typedef uint16_t U16x8 __attribute__((vector_size(16)));
  typedef uint32_t U32x8 __attribute__((vector_size(32)));
  U16x8 bits;
  std::memcpy(&bits, p, sizeof bits);
  return std::bit_cast<F32x8>(__builtin_convertvector(bits, U32x8) << 16);
}

FATHOM_INLINE void store(float* p, F32x8 v) { std::memcpy(p, &v, sizeof v); }

FATHOM_INLINE void store_partial(float* p, F32x8 v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// Written as arithmetic because GCC turns an initialiser list into eight inserts.
FATHOM_INLINE F32x8 broadcast(float x) { return x - F32x8{}; }

// A fixed tree: (0+4, 1+5, 2+6, 3+7), then (0+2, 1+3), then 0+1.
FATHOM_INLINE float horizontal_sum(F32x8 v) {
  typedef float F32x4 __attribute__((vector_size(16)));
  const F32x4 four =
      __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
  const F32x4 two = four + __builtin_shufflevector(four, four, 2, 3, 2, 3);
  return two[0] + two[1];
}

// Bit i: whether lane i of a comparison's result is true.
FATHOM_INLINE uint32_t lane_bits(I32x8 truth) {
#if defined(__AVX2__)
  return static_cast<uint32_t>(__builtin_ia32_movmskps256(std::bit_cast<F32x8>(truth)));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= (truth[lane] ? 1u : 0u) << lane;
  return bits;
#endif
}

FATHOM_INLINE F32x8 max(F32x8 a, F32x8 b) { return a > b ? a : b; }
FATHOM_INLINE F32x8 min(F32x8 a, F32x8 b) { return a < b ? a : b; }

// Each lane rounded to bf16 (nearest even), as f32; NaN stays NaN.
FATHOM_INLINE F32x8 round_to_bf16(F32x8 x) {
  typedef uint32_t U32x8 __attribute__((vector_size(32)));
  const U32x8 bits = std::bit_cast<U32x8>(x);
  const U32x8 rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  const U32x8 quiet = bits | 0x00400000u;  // rounded, NaN could become infinity
  return std::bit_cast<F32x8>((x == x ? rounded : quiet) & 0xffff0000u);
}

// e^x to 2 ulp for x in [-87, 88]; below it 0, above it inf. -inf gives 0, NaN gives NaN.
// Cody-Waite reduction by ln 2 in two parts, then a degree-6 polynomial (Cephes' expf
// coefficients).
FATHOM_INLINE F32x8 exp(F32x8 x) {
  const F32x8 clamped = min(max(x, broadcast(-87.5f)), broadcast(88.5f));
  const F32x8 magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F32x8 n = (clamped * 1.44269504f + magic) - magic;
  const F32x8 r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  F32x8 p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors: n = 128 alone would overflow the exponent field.
  const I32x8 whole = __builtin_convertvector(n, I32x8);
  const I32x8 half = whole >> 1;
  const F32x8 scale_a = std::bit_cast<F32x8>((half + 127) << 23);
  const F32x8 scale_b = std::bit_cast<F32x8>((whole - half + 127) << 23);
  const F32x8 result = p * scale_a * scale_b;
  const F32x8 finite = x < -87.5f ? broadcast(0.0f) : result;
  return x > 88.5f ? broadcast(__builtin_inff()) : (x == x ? finite : x);
}

// Natural logarithm to 2 ulp (absolute 1e-7 near 1) of normal numbers above 0; 0 gives about -87.
// Cephes' logf: a mantissa in [sqrt(1/2), sqrt(2)) and a polynomial of degree 9.
FATHOM_INLINE F32x8 log(F32x8 x) {
  const I32x8 bits = std::bit_cast<I32x8>(max(x, broadcast(1.17549435e-38f)));
  const F32x8 half_to_one = std::bit_cast<F32x8>((bits & 0x007fffff) | 0x3f000000);
  const F32x8 exponent = __builtin_convertvector((bits >> 23) - 126, F32x8);
  const F32x8 threshold = broadcast(0.707106781f);
  const F32x8 e = half_to_one < threshold ? exponent - 1.0f : exponent;
  const F32x8 m = (half_to_one < threshold ? half_to_one + half_to_one : half_to_one) - 1.0f;
  F32x8 p = broadcast(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const F32x8 squared = m * m;
  return m + (p * m * squared - 0.5f * squared + e * -2.12194440e-4f) + e * 0.693359375f;
}

// Eight e4m3 numbers * 2^-8: a byte moved to the top bits
// of a half is its number * 2^-8, subnormals included. NaN reads as +-480 * 2^-8.
FATHOM_INLINE F32x8 load_e4m3(const uint8_t* p) {
  typedef uint8_t U8x8 __attribute__((vector_size(8)));
  U8x8 bytes;
  std::memcpy(&bytes, p, sizeof bytes);
#if defined(__F16C__)
  typedef int16_t I16x8 __attribute__((vector_size(16)));
  const I16x8 high = __builtin_convertvector(bytes, I16x8) << 8;
  return __builtin_ia32_vcvtph2ps256(high >> 1 & static_cast<int16_t>(0xbf80));
#else
  const I32x8 wide = __builtin_convertvector(bytes, I32x8);
  return std::bit_cast<F32x8>((wide & 0x80) << 24 | (wide & 0x7f) << 20) * 0x1.0p112f;
#endif
}

typedef int16_t I16x16 __attribute__((vector_size(32)));

// The same of sixteen bytes at the tops of 16-bit lanes, whatever stands below them.
FATHOM_INLINE void widen_top_bytes(I16x16 top, F32x8 (&out)[2]) {
  const I16x16 f16 = top >> 1 & static_cast<int16_t>(0xbf80);
#if defined(__F16C__)
  out[0] = __builtin_ia32_vcvtph2ps256(__builtin_shufflevector(f16, f16, 0, 1, 2, 3, 4, 5, 6, 7));
  out[1] =
      __builtin_ia32_vcvtph2ps256(__builtin_shufflevector(f16, f16, 8, 9, 10, 11, 12, 13, 14, 15));
#else
  for (int lane = 0; lane < 16; ++lane) {
    const int32_t bits = (f16[lane] & 0x8000) << 16 | (f16[lane] & 0x3f80) << 13;
    out[lane / kLanes][lane % kLanes] = std::bit_cast<float>(bits) * 0x1.0p112f;
  }
#endif
}

#if defined(__AVX2__)

// Thirty-two bytes, each moved to the top of a 16-bit lane, at one instruction a register. The
// halves of a register hold eight consecutive bytes each: 0 to 7 and 16 to 23, then 8 to 15 and 24
// to 31.
FATHOM_INLINE void load_top_bytes(const uint8_t* p, I16x16 (&out)[2]) {
  typedef uint8_t U8x32 __attribute__((vector_size(32)));
  U8x32 bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  const U8x32 zeros{};
  out[0] = std::bit_cast<I16x16>(__builtin_shufflevector(
      zeros, bytes, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,  //
      16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55));
  out[1] = std::bit_cast<I16x16>(__builtin_shufflevector(
      zeros, bytes, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,  //
      24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63));
}
#endif

// Thirty-two of them in order, at about half the instructions a number.
FATHOM_INLINE void load_e4m3(const uint8_t* p, F32x8 (&out)[4]) {
#if defined(__F16C__) && defined(__AVX2__)
  I16x16 top[2];
  load_top_bytes(p, top);
  for (int i = 0; i < 2; ++i) {
    F32x8 halves[2];
    widen_top_bytes(top[i], halves);
    out[i] = halves[0];
    out[i + 2] = halves[1];
  }
#else
  for (int part = 0; part < 4; ++part) out[part] = load_e4m3(p + part * kLanes);
#endif
}

// out[i] = e4m3 bits[i] * scale.
FATHOM_INLINE void widen_e4m3(const uint8_t* bits, int64_t count, float scale, float* out) {
  const float factor = scale * 256.0f;
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    F32x8 wide[4];
    load_e4m3(bits + i, wide);
    for (int part = 0; part < 4; ++part) store(out + i + part * kLanes, wide[part] * factor);
  }
  for (; i + kLanes <= count; i += kLanes) store(out + i, load_e4m3(bits + i) * factor);
  if (i == count) return;
  uint8_t rest[kLanes] = {};
  std::memcpy(rest, bits + i, count - i);
  store_partial(out + i, load_e4m3(rest) * factor, count - i);
}

FATHOM_INLINE F32x8 sigmoid(F32x8 x) { return 1.0f / (1.0f + exp(-x)); }

}  // namespace fathom::kernels
