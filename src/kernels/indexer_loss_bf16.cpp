#include "kernels/indexer_loss_bf16.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/simd.h"

namespace fathom::kernels {

#if FATHOM_HAS_BF16_KERNELS

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// One thread's. Rows of `padded` elements begin with a cache line.
struct Scratch {
  PaddedKeys keys;
  LineBuffer dots, teacher, scores, weights;
  std::vector<float> factor;
};

// p = mean over heads of exp(scale * dots - lse).
BF16_KERNEL void mean_probabilities(const float* dots, const float* lse_H, int64_t lse_stride,
                                    int64_t num_heads, int64_t padded, float scale, float* p) {
  const float share = 1.0f / static_cast<float>(num_heads);
  for (int64_t i = 0; i < padded; i += 16) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t h = 0; h < num_heads; ++h)
      sum += exp(_mm512_load_ps(dots + h * padded + i) * scale - lse_H[h * lse_stride]);
    _mm512_store_ps(p + i, sum * share);
  }
}

// sum p log p over whole vectors; zeros add nothing.
KERNEL float sum_p_log_p(const float* p, int64_t padded) {
  F32x8 sum{};
  for (int64_t i = 0; i < padded; i += kLanes) sum += load(p + i) * log(load(p + i));
  return horizontal_sum(sum);
}

// I = sum_j w_j relu(z_j), eq. (1), -inf beyond the count. Returns the maximum.
BF16_KERNEL float sum_heads(const float* z, const float* w, int64_t num_heads, int64_t count,
                            int64_t padded, float* scores) {
  __m512 most = _mm512_set1_ps(kMinusInfinity);
  for (int64_t i = 0; i < padded; i += 16) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < num_heads; ++j)
      sum = _mm512_fmadd_ps(_mm512_max_ps(_mm512_load_ps(z + j * padded + i), _mm512_setzero_ps()),
                            _mm512_set1_ps(w[j]), sum);
    sum = _mm512_mask_mov_ps(_mm512_set1_ps(kMinusInfinity), first_lanes(count - i), sum);
    most = _mm512_max_ps(most, sum);
    _mm512_store_ps(scores + i, sum);
  }
  return _mm512_reduce_max_ps(most);
}

// The scores become dL/dI = softmax(I) - p; p is zero beyond the count. Returns the KL without
// sum p log p, which depends on the teacher alone.
BF16_KERNEL float softmax_minus_teacher(const float* p, float maximum, int64_t padded,
                                        float* scores) {
  __m512 sum = _mm512_setzero_ps(), mass = sum, cross = sum;
  for (int64_t i = 0; i < padded; i += 16) {
    const __m512 centred = _mm512_load_ps(scores + i) - maximum, teacher = _mm512_load_ps(p + i);
    const __mmask16 is_key =
        _mm512_cmp_ps_mask(centred, _mm512_set1_ps(kMinusInfinity), _CMP_NEQ_UQ);
    const __m512 e = _mm512_maskz_mov_ps(is_key, exp(centred));
    sum += e;
    mass += teacher;
    cross = _mm512_mask3_fmadd_ps(teacher, centred, cross, is_key);
    _mm512_store_ps(scores + i, e);
  }
  const float total = _mm512_reduce_add_ps(sum), factor = 1 / total;
  for (int64_t i = 0; i < padded; i += 16)
    _mm512_store_ps(scores + i, _mm512_load_ps(scores + i) * factor - _mm512_load_ps(p + i));
  return _mm512_reduce_add_ps(mass) * std::log(total) - _mm512_reduce_add_ps(cross);
}

// z becomes dL/dz = g w 1[z > 0], also rounded to weights; returns dL/dw = sum g relu(z).
BF16_KERNEL float head_gradient(const float* g, float w, int64_t padded, float* z,
                                uint32_t* weights) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < padded; i += 16) {
    const __m512 value = _mm512_load_ps(z + i), gradient = _mm512_load_ps(g + i);
    const __mmask16 is_on = _mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_GT_OQ);
    sum = _mm512_mask3_fmadd_ps(gradient, value, sum, is_on);
    const __m512 dz = _mm512_maskz_mul_ps(is_on, gradient, _mm512_set1_ps(w));
    _mm512_store_ps(z + i, dz);
    store_rounded(dz, weights + i / 2);
  }
  return _mm512_reduce_add_ps(sum);
}

// rows[keys[i]] += sum_j dz[j][i] * q[j], 16 kVectors columns at most.
template <int kVectors>
BF16_INLINE void scatter_columns(const float* dz, int64_t num_heads, int64_t padded,
                                 std::span<const int32_t> keys, const float* q, int64_t dim,
                                 int64_t cols, float* rows, int64_t stride) {
  const __mmask16 last = first_lanes(cols - 16 * (kVectors - 1));
  const auto lanes = [last](int v) { return v + 1 < kVectors ? __mmask16{0xffff} : last; };
  for (size_t i = 0; i < keys.size(); ++i) {
    float* const row = rows + keys[i] * stride;
    __m512 sum[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[v] = _mm512_maskz_loadu_ps(lanes(v), row + 16 * v);
    for (int64_t j = 0; j < num_heads; ++j) {
      const __m512 weight = _mm512_set1_ps(dz[j * padded + i]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        sum[v] =
            _mm512_fmadd_ps(weight, _mm512_maskz_loadu_ps(lanes(v), q + j * dim + 16 * v), sum[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm512_mask_storeu_ps(row + 16 * v, lanes(v), sum[v]);
  }
}

BF16_KERNEL void scatter_heads(const float* dz, int64_t num_heads, int64_t padded,
                               std::span<const int32_t> keys, const float* q, int64_t dim,
                               float* rows, int64_t stride) {
  for (int64_t x = 0; x < dim; x += 64) {
    const int64_t cols = std::min<int64_t>(64, dim - x);
    if (cols > 48)
      scatter_columns<4>(dz, num_heads, padded, keys, q + x, dim, cols, rows + x, stride);
    else if (cols > 32)
      scatter_columns<3>(dz, num_heads, padded, keys, q + x, dim, cols, rows + x, stride);
    else if (cols > 16)
      scatter_columns<2>(dz, num_heads, padded, keys, q + x, dim, cols, rows + x, stride);
    else
      scatter_columns<1>(dz, num_heads, padded, keys, q + x, dim, cols, rows + x, stride);
  }
}

// The teacher of query t's keys, zero beyond them.
void fill_teacher(const IndexerLossRows& rows, const IndexerLossInput& in, int64_t t,
                  Scratch& scratch, float* p) {
  const int64_t count = scratch.keys.count(), padded = scratch.keys.padded();
  if (in.probabilities) {
    std::copy_n(in.probabilities + in.keys_T.begins_T1[t], count, p);
  } else {
    auto* const dots = scratch.dots.reserve<float>(in.shape.num_heads * padded);
    gathered_head_dots(rows.q, t, rows.k, scratch.keys, dots);
    mean_probabilities(dots, in.lse_HT.data + t, in.lse_HT.stride, in.shape.num_heads, padded,
                       in.shape.scale, p);
  }
  std::fill(p + count, p + padded, 0.0f);
}

}  // namespace

IndexerLossRows::IndexerLossRows(const IndexerLossInput& in) {
  if (!in.probabilities) {
    q.assign(in.q, in.shape.num_heads);
    k.assign(in.k, in.shape.num_heads);
  }
  q_index.assign(in.q_TJX, in.w_TJ.cols);
  k_index.assign(in.k_SX, 1);
}

double indexer_loss_of_selected_bf16(const IndexerLossRows& rows, const IndexerLossInput& in,
                                     const IndexerLossOutput& out, int64_t t, View2<float> dk_SX) {
  static thread_local Scratch scratch;
  scratch.keys.assign(in.keys_T[t]);
  const int64_t count = scratch.keys.count(), padded = scratch.keys.padded();
  const int64_t heads = in.w_TJ.cols, dim = in.k_SX.cols;
  auto* const p = scratch.teacher.reserve<float>(padded);
  fill_teacher(rows, in, t, scratch, p);
  auto* const z = scratch.dots.reserve<float>(heads * padded);
  auto* const scores = scratch.scores.reserve<float>(padded);
  auto* const weights = scratch.weights.reserve<uint32_t>(heads * padded / 2);
  gathered_head_dots(rows.q_index, t, rows.k_index, scratch.keys, z);
  const float maximum = sum_heads(z, in.w_TJ[t], heads, count, padded, scores);
  const double loss = sum_p_log_p(p, padded) + softmax_minus_teacher(p, maximum, padded, scores);
  for (int64_t j = 0; j < heads; ++j)
    out.dw_TJ[t][j] =
        head_gradient(scores, in.w_TJ[t][j], padded, z + j * padded, weights + j * padded / 2);
  scratch.factor.assign(heads, 1.0f);
  gathered_head_sums(weights, scratch.factor, rows.k_index, scratch.keys, out.dq_TJX[t]);
  scatter_heads(z, heads, padded, in.keys_T[t], in.q_TJX[t], dim, dk_SX.data, dk_SX.stride);
  return loss;
}

#else

IndexerLossRows::IndexerLossRows(const IndexerLossInput&) { CHECK(false, "no bf16 kernels here"); }
double indexer_loss_of_selected_bf16(const IndexerLossRows&, const IndexerLossInput&,
                                     const IndexerLossOutput&, int64_t, View2<float>) {
  CHECK(false, "no bf16 kernels here");
}

#endif

}  // namespace fathom::kernels
