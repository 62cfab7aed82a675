// The small float formats: bf16, f16 and e4m3 (OCP FP8 "e4m3fn": no infinities, largest 448), and
// the reference's block quantisation of activations (reference `act_quant`, report appendix of
// V3 3.3).
#pragma once

#include <cstdint>
#include <span>

#include "base/array_view.h"

namespace fathom::kernels {

// Round to nearest, ties to even. NaN stays NaN.
uint16_t to_bf16(float value);
float from_bf16(uint16_t bits);
float from_f16(uint16_t bits);
// Round to nearest even; beyond 448 saturates; NaN becomes 0x7f.
uint8_t to_e4m3(float value);
float from_e4m3(uint8_t bits);

// dst[i] = src[i] rounded to bf16, kept as f32. src and dst may be the same.
void round_to_bf16(std::span<const float> src, std::span<float> dst);
void to_bf16(std::span<const float> src, std::span<uint16_t> dst);
void from_bf16(const uint16_t* src, int64_t count, float* dst);

inline constexpr int64_t kQuantGroup = 128;
inline constexpr float kE4M3Max = 448.0f;

// The power-of-two scale of a group: 2^ceil(log2(max(amax, 1e-4) / 448)).
float ue8m0_scale(float amax);

// Each row of x in groups of 128 (or fewer, at the end): s = ue8m0_scale(amax),
// q = e4m3(clamp(x / s)). q_MK receives the e4m3 values as f32, unscaled; scale_MG one scale a
// group, G = ceil(K / 128). Exact: every q is an e4m3 value and every s a power of two.
void quantise_activations(View2<const float> x_MK, View2<float> q_MK, View2<float> scale_MG);

// x passed through FP8 and back: q * s. In place where x and y are the same.
void round_through_fp8(View2<const float> x_MK, View2<float> y_MK);

// Orthonormal Walsh-Hadamard transform (Sylvester order) of each row, in place; K a power of two.
void hadamard(View2<float> x_MK);

}  // namespace fathom::kernels
