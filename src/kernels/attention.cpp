#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/matmul.h"
#include "kernels/simd.h"
#include "kernels/softmax_row.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kQueryBlock = 96;  // a multiple of gemm's 6 rows
constexpr int64_t kKeyBlock = 128;   // and of its 16 columns
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

Strided rows_of(View2<const float> x) { return {x.data, x.stride, 1}; }
Strided transpose_of(View2<const float> x) { return {x.data, 1, x.stride}; }

// ds = p * (dp - delta) * scale
KERNEL void score_gradient_row(const float* p, const float* dp, int64_t count, float delta,
                               float scale, float* ds) {
  for (int64_t i = 0; i < count; ++i) ds[i] = p[i] * (dp[i] - delta) * scale;
}

KERNEL void mask_row(const uint8_t* allowed, int64_t count, float* scores) {
  for (int64_t i = 0; i < count; ++i) scores[i] = allowed[i] ? scores[i] : kMinusInfinity;
}

// Sets what query t at `position` may not see in scores of keys [s_begin, s_begin + count) to -inf.
void apply_mask(float* scores, int64_t s_begin, int64_t count, int64_t position,
                const AttentionMask& mask, int64_t t) {
  for (int64_t i = std::max<int64_t>(0, position + 1 - s_begin); i < count; ++i)
    scores[i] = kMinusInfinity;
  if (mask.allowed) mask_row(mask.allowed + t * mask.stride + s_begin, count, scores);
}

// Running softmax of one query: rescales what has been summed so far to the new maximum.
void online_softmax_row(float* scores, int64_t count, float scale, float& maximum, float& sum,
                        View2<float> out, int64_t row) {
  const float block_max = max_row(scores, count) * scale;
  if (block_max == kMinusInfinity) {
    std::fill(scores, scores + count, 0.0f);
    return;
  }
  if (block_max > maximum) {
    const float rescale = std::exp(maximum - block_max);
    scale_row(out[row], out.cols, rescale);
    sum *= rescale;
    maximum = block_max;
  }
  sum += exp_scaled_row(scores, count, scale, maximum);
}

void forward_query_block(const AttentionShape& shape, const AttentionForward& io, int64_t h,
                         int64_t t_begin, int64_t t_end) {
  static thread_local std::vector<float> scores;
  scores.resize(kQueryBlock * kKeyBlock);
  const int64_t offset = io.k.rows - io.q.rows;
  const auto q = head_columns(io.q, h, shape.qk_dim).slice_rows(t_begin, t_end);
  const auto out = head_columns(io.out, h, shape.v_dim).slice_rows(t_begin, t_end);
  float maximum[kQueryBlock], sum[kQueryBlock];
  std::fill_n(maximum, q.rows, kMinusInfinity);
  std::fill_n(sum, q.rows, 0.0f);
  for (int64_t t = 0; t < out.rows; ++t) std::fill_n(out[t], out.cols, 0.0f);
  const int64_t s_total = offset + t_end;
  for (int64_t s = 0; s < s_total; s += kKeyBlock) {
    const int64_t s_end = std::min(s + kKeyBlock, s_total);
    const auto k = head_columns(io.k, h, shape.qk_dim).slice_rows(s, s_end);
    const auto v = head_columns(io.v, h, shape.v_dim).slice_rows(s, s_end);
    const View2<float> tile(scores.data(), q.rows, k.rows, kKeyBlock);
    gemm_serial({q.rows, k.rows, shape.qk_dim}, rows_of(q), transpose_of(k), tile, false,
                shape.precision);
    for (int64_t t = 0; t < q.rows; ++t) {
      apply_mask(tile[t], s, k.rows, offset + t_begin + t, io.mask, t_begin + t);
      online_softmax_row(tile[t], k.rows, shape.scale, maximum[t], sum[t], out, t);
    }
    gemm_serial({q.rows, shape.v_dim, k.rows}, rows_of(tile), rows_of(v), out, true,
                shape.precision);
  }
  for (int64_t t = 0; t < q.rows; ++t) {
    if (sum[t] > 0) scale_row(out[t], out.cols, 1 / sum[t]);
    io.lse_HT[h][t_begin + t] = sum[t] > 0 ? maximum[t] + std::log(sum[t]) : kMinusInfinity;
  }
}

struct BackwardScratch {
  std::vector<float> p, ds, delta;
};

// Probabilities and score gradients of one tile.
void backward_tile(const AttentionShape& shape, const AttentionBackward& io, int64_t h, int64_t t,
                   int64_t s, View2<float> p, View2<float> ds, const float* delta) {
  const int64_t offset = io.k.rows - io.q.rows;
  const auto q = head_columns(io.q, h, shape.qk_dim).slice_rows(t, t + p.rows);
  const auto k = head_columns(io.k, h, shape.qk_dim).slice_rows(s, s + p.cols);
  const auto v = head_columns(io.v, h, shape.v_dim).slice_rows(s, s + p.cols);
  const auto dout = head_columns(io.dout, h, shape.v_dim).slice_rows(t, t + p.rows);
  gemm_serial({p.rows, p.cols, shape.qk_dim}, rows_of(q), transpose_of(k), p, false,
              shape.precision);
  gemm_serial({p.rows, p.cols, shape.v_dim}, rows_of(dout), transpose_of(v), ds, false,
              shape.precision);
  for (int64_t row = 0; row < p.rows; ++row) {
    apply_mask(p[row], s, p.cols, offset + t + row, io.mask, t + row);
    if (io.lse_HT[h][t + row] == kMinusInfinity)
      std::fill_n(p[row], p.cols, 0.0f);  // it saw no key
    else
      exp_scaled_row(p[row], p.cols, shape.scale, io.lse_HT[h][t + row]);
    score_gradient_row(p[row], ds[row], p.cols, delta[t + row], shape.scale, ds[row]);
  }
}

void backward_head(const AttentionShape& shape, const AttentionBackward& io, int64_t h) {
  static thread_local BackwardScratch scratch;
  const int64_t t_total = io.q.rows, s_total = io.k.rows, offset = s_total - t_total;
  scratch.p.resize(kQueryBlock * kKeyBlock);
  scratch.ds.resize(kQueryBlock * kKeyBlock);
  scratch.delta.resize(t_total);
  const auto out = head_columns(io.out, h, shape.v_dim),
             dout = head_columns(io.dout, h, shape.v_dim);
  const auto dq = head_columns(io.dq, h, shape.qk_dim), dk = head_columns(io.dk, h, shape.qk_dim);
  const auto dv = head_columns(io.dv, h, shape.v_dim);
  for (int64_t t = 0; t < t_total; ++t) {
    float sum = 0;
    for (int64_t i = 0; i < shape.v_dim; ++i) sum += out[t][i] * dout[t][i];
    scratch.delta[t] = sum;
    std::fill_n(dq[t], shape.qk_dim, 0.0f);
  }
  for (int64_t s = 0; s < s_total; s += kKeyBlock) {
    const int64_t s_size = std::min(kKeyBlock, s_total - s);
    const auto dk_block = dk.slice_rows(s, s + s_size), dv_block = dv.slice_rows(s, s + s_size);
    bool is_first = true;
    const int64_t first_t = std::max<int64_t>(0, s - offset) / kQueryBlock * kQueryBlock;
    for (int64_t t = first_t; t < t_total; t += kQueryBlock) {
      const int64_t t_size = std::min(kQueryBlock, t_total - t);
      const View2<float> p(scratch.p.data(), t_size, s_size, kKeyBlock);
      const View2<float> ds(scratch.ds.data(), t_size, s_size, kKeyBlock);
      backward_tile(shape, io, h, t, s, p, ds, scratch.delta.data());
      const auto q = head_columns(io.q, h, shape.qk_dim).slice_rows(t, t + t_size);
      const auto k = head_columns(io.k, h, shape.qk_dim).slice_rows(s, s + s_size);
      const auto dout_block = dout.slice_rows(t, t + t_size);
      gemm_serial({s_size, shape.v_dim, t_size}, transpose_of(p), rows_of(dout_block), dv_block,
                  !is_first, shape.precision);
      gemm_serial({s_size, shape.qk_dim, t_size}, transpose_of(ds), rows_of(q), dk_block, !is_first,
                  shape.precision);
      gemm_serial({t_size, shape.qk_dim, s_size}, rows_of(ds), rows_of(k),
                  dq.slice_rows(t, t + t_size), true, shape.precision);
      is_first = false;
    }
  }
}

}  // namespace

void attention_forward(const AttentionShape& shape, const AttentionForward& io, int64_t head_begin,
                       int64_t head_end) {
  CHECK_LE(io.q.rows, io.k.rows);
  CHECK_EQ(io.k.rows, io.v.rows);
  for (int64_t h = head_begin; h < head_end; ++h)
    for (int64_t t = 0; t < io.q.rows; t += kQueryBlock)
      forward_query_block(shape, io, h, t, std::min(t + kQueryBlock, io.q.rows));
}

void attention_backward(const AttentionShape& shape, const AttentionBackward& io,
                        int64_t head_begin, int64_t head_end) {
  CHECK_LE(io.q.rows, io.k.rows);
  for (int64_t h = head_begin; h < head_end; ++h) backward_head(shape, io, h);
}

namespace reference {

// Softmax-weighted mean of value rows in double; score(s) is -inf for what is masked.
template <typename Score>
double weighted_values(int64_t num_keys, const Score& score, int64_t dim,
                       const std::vector<const float*>& values, float* out) {
  double maximum = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t s = 0; s < num_keys; ++s) maximum = std::max(maximum, score(s));
  std::vector<double> total(dim);
  if (std::isfinite(maximum)) {
    for (int64_t s = 0; s < num_keys; ++s) {
      const double p = std::exp(score(s) - maximum);
      sum += p;
      for (int64_t i = 0; i < dim; ++i) total[i] += p * values[s][i];
    }
  }
  for (int64_t i = 0; i < dim; ++i) out[i] = sum > 0 ? static_cast<float>(total[i] / sum) : 0.0f;
  return maximum + std::log(sum);
}

double dot(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

void attention(const AttentionShape& shape, const AttentionForward& io) {
  const int64_t offset = io.k.rows - io.q.rows;
  for (int64_t h = 0; h < shape.num_heads; ++h) {
    std::vector<const float*> values(io.k.rows);
    for (int64_t s = 0; s < io.k.rows; ++s) values[s] = io.v[s] + h * shape.v_dim;
    for (int64_t t = 0; t < io.q.rows; ++t) {
      const auto score = [&](int64_t s) -> double {
        if (s > offset + t) return kMinusInfinity;
        if (io.mask.allowed && !io.mask.allowed[t * io.mask.stride + s]) return kMinusInfinity;
        return shape.scale *
               dot(io.q[t] + h * shape.qk_dim, io.k[s] + h * shape.qk_dim, shape.qk_dim);
      };
      io.lse_HT[h][t] = static_cast<float>(
          weighted_values(io.k.rows, score, shape.v_dim, values, io.out[t] + h * shape.v_dim));
    }
  }
}

}  // namespace reference
}  // namespace fathom::kernels
