#include "kernels/sparse_attention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "base/parallel.h"
#include "kernels/amx_tile.h"
#include "kernels/fp8.h"
#include "kernels/gathered_rows.h"
#include "kernels/queries_of_keys.h"
#include "kernels/softmax_row.h"
#include "kernels/sparse_attention_amx.h"
#include "kernels/sparse_attention_bf16.h"
#include "kernels/tile.h"

namespace fathom::kernels {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// Queries taken together: for each head one after another, so that what they select of it stays in
// the second cache.
constexpr int64_t kBlockQueries = 64;
// So many keys' rows of a head, of k or of v, stay in the first cache.
constexpr int64_t kChunkKeys = 128;

bool rounds(const AttentionShape& shape) { return shape.precision == Precision::kBF16; }

KERNEL float dot(const float* a, const float* b, int64_t count) {
  F32x8 sum{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += load(a + i) * load(b + i);
  return horizontal_sum(sum + load_partial(a + i, count - i) * load_partial(b + i, count - i));
}

KERNEL void add_scaled(const float* x, float factor, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] += factor * x[i];
}

// A block of queries at a time, in it head by head.
class Forward {
 public:
  Forward(const AttentionShape& shape, const SparseAttentionForward& io) : shape_(shape), io_(io) {
    q_.assign(io.q, shape.num_heads, rounds(shape));
    k_.assign(io.k, shape.num_heads, rounds(shape));
    v_.assign(io.v, shape.num_heads, rounds(shape));
  }

  void add_block(int64_t begin, int64_t end) const {
    for (int64_t t = begin; t < end && io_.mean_probabilities; ++t)
      std::fill_n(mean_probabilities(t), io_.keys_T[t].size(), 0.0f);
    for (int64_t h = 0; h < shape_.num_heads; ++h)
      for (int64_t t = begin; t < end; ++t) add_query(t, h);
  }

 private:
  void add_query(int64_t t, int64_t h) const {
    static thread_local std::vector<float> scores;
    const auto keys = io_.keys_T[t];
    const auto count = std::ssize(keys);
    float* const out = io_.out[t] + h * shape_.v_dim;
    std::fill_n(out, shape_.v_dim, 0.0f);
    if (count == 0) {
      io_.lse_HT[h][t] = kMinusInfinity;
      return;
    }
    scores.resize(count);
    float* const p = scores.data();
    gathered_dots(q_.head(h)[t], k_.head(h), keys, p);
    const float maximum = max_row(p, count);
    const auto sum = static_cast<float>(exp_row(p, count, maximum, shape_.scale, p));
    io_.lse_HT[h][t] = log_sum_exp(maximum, shape_.scale, sum);
    if (io_.mean_probabilities)
      add_scaled(p, 1 / (sum * static_cast<float>(shape_.num_heads)), count, mean_probabilities(t));
    if (rounds(shape_)) round_to_bf16(scores, scores);
    add_gathered_sum(p, 1 / sum, head_columns(v_.head(h), 0, shape_.v_dim), keys, out);
  }

  float* mean_probabilities(int64_t t) const {
    return io_.mean_probabilities + io_.keys_T.begins_T1[t];
  }

  const AttentionShape& shape_;
  const SparseAttentionForward& io_;
  HeadRowsF32 q_, k_, v_;
};

struct ScoreGradient {
  float scale, lse, delta;
  bool round;
};

// scores become probabilities, dp the scores' gradients; in whole vectors, up to seven numbers
// behind the last.
KERNEL void score_gradients(const ScoreGradient& of, int64_t count, float* scores, float* dp) {
  for (int64_t i = 0; i < count; i += kLanes) {
    // The product is rounded, as lse's was: fused with the difference it would keep what lse has
    // lost, which for large scores is more than an exponential takes.
    F32x8 scaled = load(scores + i) * of.scale;
    asm("" : "+m"(scaled));
    // In this order the minimum of NaN is NaN.
    const F32x8 distance = scaled - of.lse, zero{};
    const F32x8 p = exp(distance > zero ? zero : distance);
    const F32x8 ds = p * (load(dp + i) - of.delta) * of.scale;
    store(scores + i, of.round ? round_to_bf16(p) : p);
    store(dp + i, of.round ? round_to_bf16(ds) : ds);
  }
}

// Some blocks of queries at a time, in them head by head: no two heads write to the same place.
class Backward {
 public:
  Backward(const AttentionShape& shape, const SparseAttentionBackward& io)
      : shape_(shape), io_(io) {
    q_.assign(io.q, shape.num_heads, rounds(shape));
    k_.assign(io.k, shape.num_heads, rounds(shape));
    v_.assign(io.v, shape.num_heads, rounds(shape));
    dout_.assign(io.dout, shape.num_heads, rounds(shape));
  }

  // Several blocks from query `begin` on: who selected a key is found once for all heads.
  void add_blocks(int64_t begin, int64_t end) {
    const int64_t num_blocks = ceil_div(end - begin, kBlockQueries);
    queries_.resize(num_blocks);
    const auto first = [&](int64_t i) { return begin + i * kBlockQueries; };
    base::parallel_for(num_blocks, 1, [&](int64_t first_block, int64_t last_block) {
      for (int64_t i = first_block; i < last_block; ++i)
        queries_[i].assign(io_.keys_T, first(i), std::min(first(i + 1), end));
    });
    base::parallel_for(shape_.num_heads, 1, [&](int64_t first_head, int64_t last_head) {
      for (int64_t h = first_head; h < last_head; ++h)
        for (int64_t i = 0; i < num_blocks; ++i)
          add_block(queries_[i], h, first(i), std::min(first(i + 1), end));
    });
  }

 private:
  // Queries first, then dk, then dv.
  void add_block(const QueriesOfKeys& queries, int64_t h, int64_t begin, int64_t end) const {
    static thread_local std::vector<float> p, ds;
    const int64_t stride = queries.weights_stride();
    p.resize((end - begin) * stride);
    ds.resize((end - begin) * stride);
    for (int64_t t = begin; t < end; ++t)
      add_query(t, h, p.data() + (t - begin) * stride, ds.data() + (t - begin) * stride);
    queries.add_weighted(ds.data(), q_.head(h).slice_rows(begin, end),
                         head_columns(io_.dk, h, shape_.qk_dim));
    queries.add_weighted(p.data(), dout_.head(h).slice_rows(begin, end),
                         head_columns(io_.dv, h, shape_.v_dim));
  }

  // dq; p become probabilities, ds the scores' gradients.
  void add_query(int64_t t, int64_t h, float* p, float* ds) const {
    const auto keys = io_.keys_T[t];
    float* const dq = io_.dq[t] + h * shape_.qk_dim;
    std::fill_n(dq, shape_.qk_dim, 0.0f);
    const float* const dout = dout_.head(h)[t];
    const ScoreGradient gradient{shape_.scale, io_.lse_HT[h][t],
                                 dot(io_.out[t] + h * shape_.v_dim, dout, shape_.v_dim),
                                 rounds(shape_)};
    for (size_t i = 0; i < keys.size(); i += kChunkKeys) {
      const auto chunk = keys.subspan(i, std::min<size_t>(kChunkKeys, keys.size() - i));
      gathered_dots(q_.head(h)[t], k_.head(h), chunk, p + i);
      gathered_dots(dout, v_.head(h), chunk, ds + i);
      score_gradients(gradient, std::ssize(chunk), p + i, ds + i);
      add_gathered_sum(ds + i, 1.0f, head_columns(k_.head(h), 0, shape_.qk_dim), chunk, dq);
    }
  }

  const AttentionShape& shape_;
  const SparseAttentionBackward& io_;
  HeadRowsF32 q_, k_, v_, dout_;
  std::vector<QueriesOfKeys> queries_;  // of each block
};

}  // namespace

void sparse_attention_forward(const AttentionShape& shape, const SparseAttentionForward& io) {
  CHECK_EQ(io.keys_T.num_queries, io.q.rows);
  CHECK_EQ(io.k.rows, io.v.rows);
  if (takes_bf16_dot(shape))
    return has_amx() ? sparse_attention_forward_amx(shape, io)
                     : sparse_attention_forward_bf16(shape, io);
  const Forward forward(shape, io);
  const int64_t num_blocks = ceil_div(io.q.rows, kBlockQueries);
  base::parallel_for(num_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      forward.add_block(i * kBlockQueries, std::min((i + 1) * kBlockQueries, io.q.rows));
  });
}

void sparse_attention_backward(const AttentionShape& shape, const SparseAttentionBackward& io) {
  CHECK_EQ(io.keys_T.num_queries, io.q.rows);
  CHECK_EQ(io.k.rows, io.v.rows);
  CHECK_EQ(io.dk.rows, io.k.rows);
  CHECK_EQ(io.dv.rows, io.v.rows);
  if (takes_bf16_dot(shape))
    return has_amx() ? sparse_attention_backward_amx(shape, io)
                     : sparse_attention_backward_bf16(shape, io);
  clear_rows(io.dk);
  clear_rows(io.dv);
  Backward backward(shape, io);
  constexpr int64_t kQueriesAtOnce = 8 * kBlockQueries;
  for (int64_t t = 0; t < io.q.rows; t += kQueriesAtOnce)
    backward.add_blocks(t, std::min(t + kQueriesAtOnce, io.q.rows));
}

}  // namespace fathom::kernels
