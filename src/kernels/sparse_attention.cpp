#include "kernels/sparse_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/gathered_rows.h"
#include "kernels/simd.h"
#include "kernels/softmax_row.h"

namespace fathom::kernels {
namespace {

// ds = p * (dp - delta) * scale, in place of dp.
KERNEL void score_gradients(const float* p, int64_t count, float delta, float scale, float* dp) {
  for (int64_t i = 0; i < count; ++i) dp[i] = p[i] * (dp[i] - delta) * scale;
}

float dot(const float* a, const float* b, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

void forward_head(const AttentionShape& shape, const SparseAttentionForward& io, int64_t h) {
  static thread_local std::vector<float> p;
  const auto q = head_columns(io.q, h, shape.qk_dim), k = head_columns(io.k, h, shape.qk_dim);
  const auto v = head_columns(io.v, h, shape.v_dim);
  const auto out = head_columns(io.out, h, shape.v_dim);
  for (int64_t t = 0; t < q.rows; ++t) {
    const auto keys = io.keys_T[t];
    const auto count = std::ssize(keys);
    if (count == 0) {
      std::fill_n(out[t], out.cols, 0.0f);
      io.lse_HT[h][t] = -std::numeric_limits<float>::infinity();
      continue;
    }
    p.resize(count);
    gathered_dots(q[t], k, keys, p.data());
    const float maximum = max_row(p.data(), count);
    const double sum = exp_row(p.data(), count, maximum, shape.scale, p.data());
    gathered_sum(p.data(), v, keys, out[t]);
    scale_row(out[t], out.cols, static_cast<float>(1 / sum));
    io.lse_HT[h][t] = maximum * shape.scale + static_cast<float>(std::log(sum));
  }
}

void backward_head(const AttentionShape& shape, const SparseAttentionBackward& io, int64_t h) {
  static thread_local std::vector<float> p, ds;
  const auto q = head_columns(io.q, h, shape.qk_dim), k = head_columns(io.k, h, shape.qk_dim);
  const auto v = head_columns(io.v, h, shape.v_dim), out = head_columns(io.out, h, shape.v_dim);
  const auto dout = head_columns(io.dout, h, shape.v_dim);
  const auto dq = head_columns(io.dq, h, shape.qk_dim), dk = head_columns(io.dk, h, shape.qk_dim);
  const auto dv = head_columns(io.dv, h, shape.v_dim);
  for (int64_t s = 0; s < dk.rows; ++s) {
    std::fill_n(dk[s], dk.cols, 0.0f);
    std::fill_n(dv[s], dv.cols, 0.0f);
  }
  for (int64_t t = 0; t < q.rows; ++t) {
    const auto keys = io.keys_T[t];
    const auto count = std::ssize(keys);
    p.resize(count);
    ds.resize(count);
    gathered_dots(q[t], k, keys, p.data());
    exp_row(p.data(), count, io.lse_HT[h][t] / shape.scale, shape.scale, p.data());
    gathered_dots(dout[t], v, keys, ds.data());
    score_gradients(p.data(), count, dot(out[t], dout[t], out.cols), shape.scale, ds.data());
    gathered_sum(ds.data(), k, keys, dq[t]);
    scatter_add(ds.data(), q[t], keys, dk);
    scatter_add(p.data(), dout[t], keys, dv);
  }
}

}  // namespace

void sparse_attention_forward(const AttentionShape& shape, const SparseAttentionForward& io,
                              int64_t head_begin, int64_t head_end) {
  CHECK_EQ(io.keys_T.num_queries, io.q.rows);
  CHECK_EQ(io.k.rows, io.v.rows);
  for (int64_t h = head_begin; h < head_end; ++h) forward_head(shape, io, h);
}

void sparse_attention_backward(const AttentionShape& shape, const SparseAttentionBackward& io,
                               int64_t head_begin, int64_t head_end) {
  CHECK_EQ(io.keys_T.num_queries, io.q.rows);
  for (int64_t h = head_begin; h < head_end; ++h) backward_head(shape, io, h);
}

}  // namespace fathom::kernels
