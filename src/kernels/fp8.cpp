#include "kernels/fp8.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/parallel.h"
#include "kernels/simd.h"

namespace fathom::kernels {
namespace {

FATHOM_INLINE uint32_t round_bits_to_bf16(uint32_t bits) {
  // NaN would round to infinity; keep its sign and make it quiet.
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits | 0x00400000) & 0xffff0000;
  return (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
}

KERNEL void round_range(const float* src, float* dst, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(dst + i, round_to_bf16(load(src + i)));
  store_partial(dst + i, round_to_bf16(load_partial(src + i, count - i)), count - i);
}

KERNEL void to_bf16_range(const float* src, uint16_t* dst, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    dst[i] = static_cast<uint16_t>(round_bits_to_bf16(std::bit_cast<uint32_t>(src[i])) >> 16);
}

KERNEL void from_bf16_range(const uint16_t* src, float* dst, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    dst[i] = std::bit_cast<float>(static_cast<uint32_t>(src[i]) << 16);
}

constexpr std::array<float, 256> make_e4m3_table() {
  std::array<float, 256> table{};
  for (int bits = 0; bits < 256; ++bits) {
    const int exponent = (bits >> 3) & 15;
    const int mantissa = bits & 7;
    float value = exponent == 0 ? static_cast<float>(mantissa) / 8 : 1 + mantissa / 8.0f;
    for (int e = std::max(exponent, 1); e < 7; ++e) value /= 2;
    for (int e = 7; e < exponent; ++e) value *= 2;
    if ((bits & 0x7f) == 0x7f) value = __builtin_nanf("");
    table[bits] = bits & 0x80 ? -value : value;
  }
  return table;
}

constexpr std::array<float, 256> kE4M3Table = make_e4m3_table();

// Nearest e4m3 value of |value| <= 448, ties to even, as f32. Eight steps a binade down to 2^-6,
// below it steps of 2^-9; adding and subtracting 1.5 * 2^23 steps rounds to even.
FATHOM_INLINE float round_to_e4m3(float value) {
  const uint32_t exponent = std::max(std::bit_cast<uint32_t>(value) >> 23 & 0xff, 121u);
  const float magic = std::bit_cast<float>((exponent + 20) << 23) * 1.5f;
  return (value + magic) - magic;
}

KERNEL void quantise_row(const float* x, int64_t count, float* q, float* scale) {
  for (int64_t begin = 0, group = 0; begin < count; begin += kQuantGroup, ++group) {
    const int64_t end = std::min(begin + kQuantGroup, count);
    float amax = 0;
    for (int64_t i = begin; i < end; ++i) amax = std::max(amax, std::abs(x[i]));
    const float s = ue8m0_scale(amax);
    scale[group] = s;
    for (int64_t i = begin; i < end; ++i)
      q[i] = round_to_e4m3(std::clamp(x[i] / s, -kE4M3Max, kE4M3Max));
  }
}

}  // namespace

uint16_t to_bf16(float value) {
  return static_cast<uint16_t>(round_bits_to_bf16(std::bit_cast<uint32_t>(value)) >> 16);
}

float from_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

float from_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 31;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1.0p-24f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint8_t to_e4m3(float value) {
  if (std::isnan(value)) return 0x7f;
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const float rounded = round_to_e4m3(std::min(std::abs(value), kE4M3Max));
  if (rounded < 0x1.0p-6f) return sign | static_cast<uint8_t>(rounded * 512.0f);
  const uint32_t bits = std::bit_cast<uint32_t>(rounded);
  return sign | static_cast<uint8_t>(((bits >> 23) - 120) << 3 | (bits >> 20 & 7));
}

float from_e4m3(uint8_t bits) { return kE4M3Table[bits]; }

void round_to_bf16(std::span<const float> src, std::span<float> dst) {
  CHECK_EQ(src.size(), dst.size());
  base::parallel_for(static_cast<int64_t>(src.size()), 1 << 16, [&](int64_t begin, int64_t end) {
    round_range(src.data() + begin, dst.data() + begin, end - begin);
  });
}

void to_bf16(std::span<const float> src, std::span<uint16_t> dst) {
  CHECK_EQ(src.size(), dst.size());
  to_bf16_range(src.data(), dst.data(), std::ssize(src));
}

void from_bf16(const uint16_t* src, int64_t count, float* dst) { from_bf16_range(src, dst, count); }

float ue8m0_scale(float amax) {
  const uint32_t bits = std::bit_cast<uint32_t>(std::max(amax, 1e-4f) * (1 / kE4M3Max));
  const uint32_t exponent = (bits >> 23) + ((bits & 0x7fffff) != 0);
  return std::bit_cast<float>(exponent << 23);
}

void quantise_activations(View2<const float> x_MK, View2<float> q_MK, View2<float> scale_MG) {
  CHECK_EQ(x_MK.rows, q_MK.rows);
  CHECK_EQ(x_MK.cols, q_MK.cols);
  CHECK_EQ(scale_MG.rows, x_MK.rows);
  CHECK_EQ(scale_MG.cols, (x_MK.cols + kQuantGroup - 1) / kQuantGroup);
  for (int64_t m = 0; m < x_MK.rows; ++m) quantise_row(x_MK[m], x_MK.cols, q_MK[m], scale_MG[m]);
}

void round_through_fp8(View2<const float> x_MK, View2<float> y_MK) {
  CHECK_EQ(x_MK.rows, y_MK.rows);
  CHECK_EQ(x_MK.cols, y_MK.cols);
  base::parallel_for(x_MK.rows, 1 + (1 << 15) / (x_MK.cols + 1), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      for (int64_t k = 0; k < x_MK.cols; k += kQuantGroup) {
        const int64_t count = std::min(kQuantGroup, x_MK.cols - k);
        float scale;
        quantise_row(x_MK[m] + k, count, y_MK[m] + k, &scale);
        for (int64_t i = 0; i < count; ++i) y_MK[m][k + i] *= scale;
      }
    }
  });
}

void hadamard(View2<float> x_MK) {
  CHECK(std::has_single_bit(static_cast<uint64_t>(x_MK.cols)), "{} columns", x_MK.cols);
  const float scale = 1 / std::sqrt(static_cast<float>(x_MK.cols));
  for (int64_t m = 0; m < x_MK.rows; ++m) {
    float* row = x_MK[m];
    for (int64_t half = 1; half < x_MK.cols; half *= 2) {
      for (int64_t begin = 0; begin < x_MK.cols; begin += 2 * half) {
        for (int64_t i = begin; i < begin + half; ++i) {
          const float a = row[i], b = row[i + half];
          row[i] = a + b;
          row[i + half] = a - b;
        }
      }
    }
    for (int64_t i = 0; i < x_MK.cols; ++i) row[i] *= scale;
  }
}

}  // namespace fathom::kernels
