#include "kernels/sparse_attention_bf16.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "base/parallel.h"
#include "kernels/gathered_bf16.h"
#include "kernels/gathered_rows.h"
#include "kernels/scattered_bf16.h"
#include "kernels/softmax_row.h"
#include "kernels/tile.h"

namespace fathom::kernels {

#if FATHOM_HAS_BF16_KERNELS

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// Queries taken together: for each head one after another, so that what they select of it stays in
// the second cache.
constexpr int64_t kBlockQueries = 64;
static_assert(kBlockQueries % kGroupQueries == 0);

// One thread's, in the forward pass.
struct Scratch {
  std::vector<PaddedKeys> keys;  // of a block's queries
  LineBuffer scores, weights;

  // Sets the keys of queries [begin, end).
  void assign(SelectedKeys keys_T, int64_t begin, int64_t end) {
    keys.resize(end - begin);
    for (int64_t t = begin; t < end; ++t) keys[t - begin].assign(keys_T[t]);
  }
};

struct Softmax {
  float maximum, sum;
};

// scores become exponentials of scale * (scores - their maximum), those beyond the count zero,
// which are also rounded to weights.
BF16_KERNEL Softmax softmax_weights(int64_t count, int64_t padded, float scale, float* scores,
                                    uint32_t* weights) {
  __m512 most = _mm512_set1_ps(kMinusInfinity), sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < padded; i += 16)  // what fills up repeats the last
    most = _mm512_max_ps(most, _mm512_load_ps(scores + i));
  const float maximum = _mm512_reduce_max_ps(most);
  for (int64_t i = 0; i < padded; i += 16) {
    const __m512 x = (_mm512_load_ps(scores + i) - maximum) * scale;
    const __m512 e = _mm512_maskz_mov_ps(first_lanes(count - i), exp(x));
    sum += e;
    _mm512_store_ps(scores + i, e);
    store_rounded(e, weights + i / 2);
  }
  return {maximum, _mm512_reduce_add_ps(sum)};
}

// out += exponentials * factor.
BF16_KERNEL void add_scaled(const float* exponentials, float factor, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first_lanes(count - i);
    _mm512_mask_storeu_ps(out + i, lanes,
                          _mm512_fmadd_ps(_mm512_load_ps(exponentials + i), _mm512_set1_ps(factor),
                                          _mm512_maskz_loadu_ps(lanes, out + i)));
  }
}

// A block of queries at a time, in it head by head.
class Forward {
 public:
  Forward(const AttentionShape& shape, const SparseAttentionForward& io) : shape_(shape), io_(io) {
    q_.assign(io.q, shape.num_heads);
    k_.assign(io.k, shape.num_heads);
    v_.assign(io.v, shape.num_heads);
  }

  void add_block(int64_t begin, int64_t end) const {
    static thread_local Scratch scratch;
    scratch.assign(io_.keys_T, begin, end);
    for (int64_t t = begin; t < end && io_.mean_probabilities; ++t)
      std::fill_n(mean_probabilities(t), scratch.keys[t - begin].count(), 0.0f);
    for (int64_t h = 0; h < shape_.num_heads; ++h)
      for (int64_t t = begin; t < end; ++t) add_query(t, h, scratch.keys[t - begin], scratch);
  }

 private:
  void add_query(int64_t t, int64_t h, const PaddedKeys& keys, Scratch& scratch) const {
    float* const out = io_.out[t] + h * shape_.v_dim;
    const int64_t count = keys.count(), padded = keys.padded();
    std::fill_n(out, shape_.v_dim, 0.0f);
    if (count == 0) {
      io_.lse_HT[h][t] = kMinusInfinity;
      return;
    }
    auto* const scores = scratch.scores.reserve<float>(padded);
    auto* const weights = scratch.weights.reserve<uint32_t>(padded / 2);
    gathered_dots(q_, t, k_, h, keys.all(), scores);
    const Softmax softmax = softmax_weights(count, padded, shape_.scale, scores, weights);
    io_.lse_HT[h][t] = log_sum_exp(softmax.maximum, shape_.scale, softmax.sum);
    add_gathered_sum(weights, 1 / softmax.sum, v_, h, keys.all(), out);
    if (io_.mean_probabilities)
      add_scaled(scores, 1 / (softmax.sum * static_cast<float>(shape_.num_heads)), count,
                 mean_probabilities(t));
  }

  float* mean_probabilities(int64_t t) const {
    return io_.mean_probabilities + io_.keys_T.begins_T1[t];
  }

  const AttentionShape& shape_;
  const SparseAttentionForward& io_;
  HeadRows q_, k_, v_;
};

// scores become probabilities, dp the scores' gradients, which are also rounded to weights.
BF16_KERNEL void score_gradients(int64_t count, int64_t padded, float scale, float lse, float delta,
                                 float* scores, float* dp, uint32_t* weights) {
  for (int64_t i = 0; i < padded; i += 16) {
    const __m512 x =
        log_probability(_mm512_load_ps(scores + i), _mm512_set1_ps(scale), _mm512_set1_ps(lse));
    const __m512 p = _mm512_maskz_mov_ps(first_lanes(count - i), exp(x));
    const __m512 ds = p * (_mm512_load_ps(dp + i) - delta) * scale;
    _mm512_store_ps(scores + i, p);
    _mm512_store_ps(dp + i, ds);
    store_rounded(ds, weights + i / 2);
  }
}

// One thread's, in the backward pass: of one head and a block of queries.
struct BackwardScratch {
  LineBuffer scores, dp, x_pairs;  // of a group's queries
  LineBuffer ds_pairs, p_pairs;    // of all groups
};

// A block of queries at a time, in it head by head: no two heads write to the same place.
class Backward {
 public:
  Backward(const AttentionShape& shape, const SparseAttentionBackward& io)
      : shape_(shape), io_(io) {
    q_.assign(io.q, shape.num_heads);
    k_.assign(io.k, shape.num_heads);
    v_.assign(io.v, shape.num_heads);
    dout_.assign(io.dout, shape.num_heads);
  }

  void add_block(int64_t begin, int64_t end) {
    begin_ = begin;
    keys_.resize(end - begin);
    groups_.resize(ceil_div(end - begin, kGroupQueries));
    base::parallel_for(std::ssize(groups_), 4, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t t = begin + i * kGroupQueries;
        groups_[i].assign(io_.keys_T, t, std::min(t + kGroupQueries, end));
        for (int64_t q = 0; q < groups_[i].size(); ++q)
          keys_[t + q - begin].assign(io_.keys_T[t + q]);
      }
    });
    first_pairs_.assign(1, 0);
    for (const QueryGroup& group : groups_)
      first_pairs_.push_back(first_pairs_.back() + kGroupPairs * group.num_padded_keys());
    base::parallel_for(shape_.num_heads, 1, [&](int64_t first, int64_t last) {
      for (int64_t h = first; h < last; ++h) add_head(h);
    });
  }

 private:
  // Queries first, then dk, then dv: what each of the three reads and writes of all the keys that
  // the block selected stays in the second cache.
  void add_head(int64_t h) const {
    static thread_local BackwardScratch scratch;
    auto* const ds_pairs = scratch.ds_pairs.reserve<uint32_t>(first_pairs_.back());
    auto* const p_pairs = scratch.p_pairs.reserve<uint32_t>(first_pairs_.back());
    for (size_t i = 0; i < groups_.size(); ++i)
      add_group(groups_[i], h, scratch, ds_pairs + first_pairs_[i], p_pairs + first_pairs_[i]);
    add_to_keys(ds_pairs, h, io_.q, io_.dk, scratch);
    add_to_keys(p_pairs, h, io_.dout, io_.dv, scratch);
  }

  void add_group(const QueryGroup& group, int64_t h, BackwardScratch& scratch, uint32_t* ds_pairs,
                 uint32_t* p_pairs) const {
    const int64_t padded = group.most_padded();
    auto* const scores = scratch.scores.reserve<float>(kGroupQueries * padded);
    auto* const dp = scratch.dp.reserve<float>(kGroupQueries * padded);
    std::array<float*, kGroupQueries> p_rows{}, ds_rows{};
    for (int64_t q = 0; q < group.size(); ++q) {
      p_rows[q] = scores + q * padded;
      ds_rows[q] = dp + q * padded;
      add_query(group.begin() + q, h, p_rows[q], ds_rows[q]);
    }
    pair_weights(group, ds_rows, ds_pairs);
    pair_weights(group, p_rows, p_pairs);
  }

  // dq; scores become probabilities, dp their gradients.
  void add_query(int64_t t, int64_t h, float* scores, float* dp) const {
    const PaddedKeys& keys = keys_[t - begin_];
    float* const dq = io_.dq[t] + h * shape_.qk_dim;
    std::fill_n(dq, shape_.qk_dim, 0.0f);
    const float lse = io_.lse_HT[h][t];
    const float delta =
        dot_of_rounded(io_.out[t] + h * shape_.v_dim, io_.dout[t] + h * shape_.v_dim, shape_.v_dim);
    alignas(64) uint32_t weights[kChunkKeys / 2];
    for (int64_t i = 0; i < keys.padded(); i += kChunkKeys) {
      const auto chunk = keys.slice(i, kChunkKeys);
      gathered_dots(q_, t, k_, h, chunk, scores + i);
      gathered_dots(dout_, t, v_, h, chunk, dp + i);
      score_gradients(keys.count() - i, std::ssize(chunk), shape_.scale, lse, delta, scores + i,
                      dp + i, weights);
      add_gathered_sum(weights, 1.0f, k_, h, chunk, dq);
    }
  }

  // out += weights * x, for head h.
  void add_to_keys(const uint32_t* weight_pairs, int64_t h, View2<const float> x, View2<float> out,
                   BackwardScratch& scratch) const {
    const int64_t dim = x.cols / shape_.num_heads;
    auto* const x_pairs = scratch.x_pairs.reserve<uint32_t>(kGroupPairs * dim);
    for (size_t i = 0; i < groups_.size(); ++i) {
      pair_rows(groups_[i], head_columns(x, h, dim), dim, x_pairs);
      scatter_add(
          groups_[i],
          {weight_pairs + first_pairs_[i], groups_[i].num_padded_keys(), x_pairs, dim, kGroupPairs},
          head_columns(out, h, dim));
    }
  }

  const AttentionShape& shape_;
  const SparseAttentionBackward& io_;
  HeadRows q_, k_, v_, dout_;
  int64_t begin_ = 0;
  std::vector<PaddedKeys> keys_;
  std::vector<QueryGroup> groups_;
  std::vector<int64_t> first_pairs_;  // where a group's pairs of weights begin
};

}  // namespace

void sparse_attention_forward_bf16(const AttentionShape& shape, const SparseAttentionForward& io) {
  const Forward forward(shape, io);
  const int64_t num_blocks = ceil_div(io.q.rows, kBlockQueries);
  base::parallel_for(num_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      forward.add_block(i * kBlockQueries, std::min((i + 1) * kBlockQueries, io.q.rows));
  });
}

void sparse_attention_backward_bf16(const AttentionShape& shape,
                                    const SparseAttentionBackward& io) {
  clear_rows(io.dk);
  clear_rows(io.dv);
  Backward backward(shape, io);
  for (int64_t t = 0; t < io.q.rows; t += kBlockQueries)
    backward.add_block(t, std::min(t + kBlockQueries, io.q.rows));
}

#else

void sparse_attention_forward_bf16(const AttentionShape&, const SparseAttentionForward&) {
  CHECK(false, "no bf16 kernels here");
}
void sparse_attention_backward_bf16(const AttentionShape&, const SparseAttentionBackward&) {
  CHECK(false, "no bf16 kernels here");
}

#endif

}  // namespace fathom::kernels
