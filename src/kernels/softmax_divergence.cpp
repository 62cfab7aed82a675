#include "kernels/softmax_divergence.h"

#include <algorithm>
#include <cmath>

#include "kernels/simd.h"
#include "kernels/softmax_row.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kSumBlock = 512;  // logits whose terms are summed in f32

struct Sums {
  double q = 0, p = 0;      // of exponentials of distances to the rows' maxima
  double p_difference = 0;  // of p's exponentials times (target - logit)
};

struct LaneSums {
  F32x8 q = {}, p = {}, p_difference = {};
};

FATHOM_INLINE void add_lanes(F32x8 logits, F32x8 target, F32x8& q, F32x8& p, LaneSums& sums) {
  sums.q += q;
  sums.p += p;
  sums.p_difference += p * (target - logits);
}

// Up to kSumBlock logits become their exponentials.
KERNEL void exponentiate(float* logits, float* target, int64_t count, float logits_max,
                         float target_max, Sums& total) {
  LaneSums sums;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const F32x8 z = load(logits + i), t = load(target + i);
    F32x8 q = exp(z - logits_max), p = exp(t - target_max);
    add_lanes(z, t, q, p, sums);
    store(logits + i, q);
    store(target + i, p);
  }
  if (i < count) {
    const F32x8 z = load_partial(logits + i, count - i), t = load_partial(target + i, count - i);
    F32x8 q = exp(z - logits_max), p = exp(t - target_max);
    for (int64_t lane = count - i; lane < kLanes; ++lane) q[lane] = p[lane] = 0;
    add_lanes(z, t, q, p, sums);
    store_partial(logits + i, q, count - i);
    store_partial(target + i, p, count - i);
  }
  total.q += horizontal_sum(sums.q);
  total.p += horizontal_sum(sums.p);
  total.p_difference += horizontal_sum(sums.p_difference);
}

// Exponentials become q - p; returns the sum of the smaller ones.
KERNEL float subtract(float* logits, const float* target, int64_t count, float q_factor,
                      float p_factor) {
  F32x8 overlap{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const F32x8 q = load(logits + i) * q_factor, p = load(target + i) * p_factor;
    overlap += q < p ? q : p;
    store(logits + i, q - p);
  }
  float rest = 0;
  for (; i < count; ++i) {
    const float q = logits[i] * q_factor, p = target[i] * p_factor;
    rest += std::min(q, p);
    logits[i] = q - p;
  }
  return horizontal_sum(overlap) + rest;
}

}  // namespace

SoftmaxDivergence softmax_divergence(float* logits, float* target, int64_t count) {
  const float logits_max = max_row(logits, count), target_max = max_row(target, count);
  Sums sums;
  for (int64_t i = 0; i < count; i += kSumBlock)
    exponentiate(logits + i, target + i, std::min(kSumBlock, count - i), logits_max, target_max,
                 sums);
  SoftmaxDivergence result;
  const double logits_lse = logits_max + std::log(sums.q),
               target_lse = target_max + std::log(sums.p);
  result.divergence = sums.p_difference / sums.p - (target_lse - logits_lse);
  for (int64_t i = 0; i < count; i += kSumBlock)
    result.overlap += subtract(logits + i, target + i, std::min(kSumBlock, count - i),
                               static_cast<float>(1 / sums.q), static_cast<float>(1 / sums.p));
  return result;
}

}  // namespace fathom::kernels
