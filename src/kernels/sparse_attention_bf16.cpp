#include "kernels/sparse_attention_bf16.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/parallel.h"
#include "kernels/gathered_bf16.h"

namespace fathom::kernels {

#if FATHOM_HAS_BF16_KERNELS

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kQueriesAtOnce = 8;  // that a thread takes
// Queries whose probabilities and score gradients are held until they go to their keys.
constexpr int64_t kWaveQueries = 32;
// Eight heads' score gradients and probabilities of one key fill a cache line.
constexpr int64_t kLineHeads = 8;

// One thread's.
struct Scratch {
  PaddedKeys keys;
  LineBuffer scores, dp, weights;
  std::vector<float> factor;
};

Scratch& thread_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

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

// out = mean over heads of their exponentials times factor.
BF16_KERNEL void mean_over_heads(const float* exponentials, std::span<const float> factor,
                                 int64_t count, int64_t padded, float* out) {
  const float share = 1.0f / static_cast<float>(factor.size());
  for (int64_t i = 0; i < count; i += 16) {
    __m512 sum = _mm512_setzero_ps();
    for (size_t h = 0; h < factor.size(); ++h)
      sum = _mm512_fmadd_ps(_mm512_load_ps(exponentials + h * padded + i),
                            _mm512_set1_ps(factor[h]), sum);
    _mm512_mask_storeu_ps(out + i, first_lanes(count - i), sum * share);
  }
}

void forward_query(const AttentionShape& shape, const SparseAttentionForward& io, const HeadRows& q,
                   const HeadRows& k, const HeadRows& v, int64_t t) {
  Scratch& scratch = thread_scratch();
  scratch.keys.assign(io.keys_T[t]);
  const int64_t count = scratch.keys.count(), padded = scratch.keys.padded();
  if (count == 0) {
    std::fill_n(io.out[t], io.out.cols, 0.0f);
    for (int64_t h = 0; h < shape.num_heads; ++h) io.lse_HT[h][t] = kMinusInfinity;
    return;
  }
  auto* const scores = scratch.scores.reserve<float>(shape.num_heads * padded);
  auto* const weights = scratch.weights.reserve<uint32_t>(shape.num_heads * padded / 2);
  scratch.factor.resize(shape.num_heads);
  gathered_head_dots(q, t, k, scratch.keys, scores);
  for (int64_t h = 0; h < shape.num_heads; ++h) {
    const Softmax softmax =
        softmax_weights(count, padded, shape.scale, scores + h * padded, weights + h * padded / 2);
    io.lse_HT[h][t] = softmax.maximum * shape.scale + std::log(softmax.sum);
    scratch.factor[h] = 1 / softmax.sum;
  }
  gathered_head_sums(weights, scratch.factor, v, scratch.keys, io.out[t]);
  if (io.mean_probabilities)
    mean_over_heads(scores, scratch.factor, count, padded,
                    io.mean_probabilities + io.keys_T.begins_T1[t]);
}

// scores become probabilities, dp the scores' gradients, which are also rounded to weights.
BF16_KERNEL void score_gradients(int64_t count, int64_t padded, float scale, float lse, float delta,
                                 float* scores, float* dp, uint32_t* weights) {
  for (int64_t i = 0; i < padded; i += 16) {
    const __m512 p =
        _mm512_maskz_mov_ps(first_lanes(count - i), exp(_mm512_load_ps(scores + i) * scale - lse));
    const __m512 ds = p * (_mm512_load_ps(dp + i) - delta) * scale;
    _mm512_store_ps(scores + i, p);
    _mm512_store_ps(dp + i, ds);
    store_rounded(ds, weights + i / 2);
  }
}

// lines[i] = eight heads' ds of key i, then their p.
BF16_KERNEL void pack_lines(const float* ds, const float* p, int64_t num_heads, int64_t count,
                            int64_t padded, int64_t line_step, float* lines) {
  for (int64_t i = 0; i < count; i += 16) {
    __m512i row[16];
    for (int64_t h = 0; h < kLineHeads; ++h) {
      const bool exists = h < num_heads;
      row[h] = exists ? _mm512_load_si512(ds + h * padded + i) : _mm512_setzero_si512();
      row[kLineHeads + h] = exists ? _mm512_load_si512(p + h * padded + i) : _mm512_setzero_si512();
    }
    transpose_lanes(row);
    for (int64_t lane = 0; lane < std::min<int64_t>(16, count - i); ++lane)
      _mm512_store_si512(lines + (i + lane) * line_step, row[lane]);
  }
}

// A query of the wave among those that selected a key, and where the pair's lines begin.
struct Entry {
  int32_t query, line;
};

// What a sum over entries needs of one operand: each head's columns behind the one before.
struct Columns {
  const float* x;  // rows of queries
  int64_t stride, dim;
  float* out;  // a key's row
};

// For kHeads heads, up to 16 kVectors columns of each from column `first` on:
// out += sum over entries of the head's weight * x[query].
template <int kHeads, int kVectors>
BF16_INLINE void add_columns(std::span<const Entry> entries, const float* weights,
                             const Columns& columns, int64_t first) {
  const __mmask16 last = first_lanes(columns.dim - first - 16 * (kVectors - 1));
  const auto lanes = [last](int v) { return v + 1 < kVectors ? __mmask16{0xffff} : last; };
  __m512 sum[kHeads][kVectors];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[h][v] = _mm512_maskz_loadu_ps(lanes(v), columns.out + h * columns.dim + first + 16 * v);
  for (const Entry& entry : entries) {
    const float* const weight = weights + entry.line;
    const float* const row = columns.x + entry.query * columns.stride + first;
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        sum[h][v] = _mm512_fmadd_ps(_mm512_set1_ps(weight[h]),
                                    _mm512_maskz_loadu_ps(lanes(v), row + h * columns.dim + 16 * v),
                                    sum[h][v]);
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      _mm512_mask_storeu_ps(columns.out + h * columns.dim + first + 16 * v, lanes(v), sum[h][v]);
}

template <int kHeads>
BF16_KERNEL void add_heads(std::span<const Entry> entries, const float* weights,
                           const Columns& columns) {
  for (int64_t first = 0; first < columns.dim; first += 64) {
    const int64_t cols = columns.dim - first;
    if (cols > 48)
      add_columns<kHeads, 4>(entries, weights, columns, first);
    else if (cols > 32)
      add_columns<kHeads, 3>(entries, weights, columns, first);
    else if (cols > 16)
      add_columns<kHeads, 2>(entries, weights, columns, first);
    else
      add_columns<kHeads, 1>(entries, weights, columns, first);
  }
}

class Backward {
 public:
  Backward(const AttentionShape& shape, const SparseAttentionBackward& io)
      : shape_(shape), io_(io) {
    q_.assign(io.q, shape.num_heads);
    k_.assign(io.k, shape.num_heads);
    v_.assign(io.v, shape.num_heads);
    dout_.assign(io.dout, shape.num_heads);
    line_step_ = (shape.num_heads + kLineHeads - 1) / kLineHeads * 16;
  }

  void add_wave(int64_t t_begin, int64_t t_end) {
    t_begin_ = t_begin;
    const int64_t* const begins = io_.keys_T.begins_T1;
    const int64_t num_entries = begins[t_end] - begins[t_begin];
    CHECK_LE(num_entries * line_step_, std::numeric_limits<int32_t>::max());
    lines_ = lines_buffer_.reserve<float>(num_entries * line_step_);
    base::parallel_for(t_end - t_begin, kQueriesAtOnce, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) add_query(t_begin + i);
    });
    sort_entries(t_end, num_entries);
    // A few heads at a time: the wave's columns of them stay in the first cache.
    for (int64_t h = 0; h < shape_.num_heads;) {
      const int64_t size = shape_.num_heads - h >= 4 ? 4 : shape_.num_heads - h >= 2 ? 2 : 1;
      base::parallel_for(std::ssize(keys_), 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          if (i + 1 < end) prefetch_key(keys_[i + 1], h, size);
          if (size == 4)
            add_to_key<4>(keys_[i], h);
          else if (size == 2)
            add_to_key<2>(keys_[i], h);
          else
            add_to_key<1>(keys_[i], h);
        }
      });
      h += size;
    }
  }

 private:
  // dq, and the lines that the query's keys need.
  void add_query(int64_t t) {
    Scratch& scratch = thread_scratch();
    scratch.keys.assign(io_.keys_T[t]);
    const int64_t count = scratch.keys.count(), padded = scratch.keys.padded();
    if (count == 0) {
      std::fill_n(io_.dq[t], io_.dq.cols, 0.0f);
      return;
    }
    auto* const scores = scratch.scores.reserve<float>(shape_.num_heads * padded);
    auto* const dp = scratch.dp.reserve<float>(shape_.num_heads * padded);
    auto* const weights = scratch.weights.reserve<uint32_t>(shape_.num_heads * padded / 2);
    gathered_head_dots(q_, t, k_, scratch.keys, scores);
    gathered_head_dots(dout_, t, v_, scratch.keys, dp);
    for (int64_t h = 0; h < shape_.num_heads; ++h) {
      float delta = 0;
      for (int64_t x = h * shape_.v_dim; x < (h + 1) * shape_.v_dim; ++x)
        delta += io_.out[t][x] * io_.dout[t][x];
      score_gradients(count, padded, shape_.scale, io_.lse_HT[h][t], delta, scores + h * padded,
                      dp + h * padded, weights + h * padded / 2);
    }
    scratch.factor.assign(shape_.num_heads, 1.0f);
    gathered_head_sums(weights, scratch.factor, k_, scratch.keys, io_.dq[t]);
    float* const lines = lines_ + first_line(t) * line_step_;
    for (int64_t h = 0; h < shape_.num_heads; h += kLineHeads)
      pack_lines(dp + h * padded, scores + h * padded, shape_.num_heads - h, count, padded,
                 line_step_, lines + 2 * h);
  }

  int64_t first_line(int64_t t) const {
    return io_.keys_T.begins_T1[t] - io_.keys_T.begins_T1[t_begin_];
  }

  // Key by key, queries ascending.
  void sort_entries(int64_t t_end, int64_t num_entries) {
    ends_.assign(io_.k.rows + 1, 0);
    entries_.resize(num_entries);
    for (int64_t t = t_begin_; t < t_end; ++t)
      for (const int32_t s : io_.keys_T[t]) ++ends_[s + 1];
    for (size_t s = 1; s < ends_.size(); ++s) ends_[s] += ends_[s - 1];
    // Filling moves each key's beginning to its end, which is where the next one began.
    for (int64_t t = t_begin_; t < t_end; ++t) {
      int64_t line = first_line(t) * line_step_;
      for (const int32_t s : io_.keys_T[t]) {
        entries_[ends_[s]++] = {static_cast<int32_t>(t - t_begin_), static_cast<int32_t>(line)};
        line += line_step_;
      }
    }
    keys_.clear();
    for (int32_t s = 0, end = 0; s < io_.k.rows; end = ends_[s++])
      if (ends_[s] > end) keys_.push_back(s);
  }

  std::span<const Entry> entries_of(int32_t s) const {
    const int32_t begin = s == 0 ? 0 : ends_[s - 1];
    return {entries_.data() + begin, static_cast<size_t>(ends_[s] - begin)};
  }

  // What a key needs lies anywhere, mostly outside the second cache.
  void prefetch_key(int32_t s, int64_t h, int64_t size) const {
    for (const Entry& entry : entries_of(s)) _mm_prefetch(lines_of(h) + entry.line, _MM_HINT_T0);
    const auto prefetch = [&](View2<const float> x, int64_t dim) {
      for (int64_t i = h * dim; i < (h + size) * dim; i += 16) _mm_prefetch(x[s] + i, _MM_HINT_T0);
    };
    prefetch(io_.dk, shape_.qk_dim);
    prefetch(io_.dv, shape_.v_dim);
  }

  const float* lines_of(int64_t h) const { return lines_ + h / kLineHeads * 16 + h % kLineHeads; }

  template <int kHeads>
  void add_to_key(int32_t s, int64_t h) const {
    const auto entries = entries_of(s);
    const auto of = [&](View2<const float> x, int64_t dim, View2<float> out) {
      return Columns{x[t_begin_] + h * dim, x.stride, dim, out[s] + h * dim};
    };
    add_heads<kHeads>(entries, lines_of(h), of(io_.q, shape_.qk_dim, io_.dk));
    add_heads<kHeads>(entries, lines_of(h) + kLineHeads, of(io_.dout, shape_.v_dim, io_.dv));
  }

  const AttentionShape& shape_;
  const SparseAttentionBackward& io_;
  HeadRows q_, k_, v_, dout_;
  int64_t line_step_ = 0, t_begin_ = 0;
  LineBuffer lines_buffer_;
  float* lines_ = nullptr;
  std::vector<int32_t> keys_, ends_;  // that any query of the wave selected; where entries end
  std::vector<Entry> entries_;
};

}  // namespace

void sparse_attention_forward_bf16(const AttentionShape& shape, const SparseAttentionForward& io) {
  HeadRows q, k, v;
  q.assign(io.q, shape.num_heads);
  k.assign(io.k, shape.num_heads);
  v.assign(io.v, shape.num_heads);
  base::parallel_for(io.q.rows, kQueriesAtOnce, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) forward_query(shape, io, q, k, v, t);
  });
}

void sparse_attention_backward_bf16(const AttentionShape& shape,
                                    const SparseAttentionBackward& io) {
  base::parallel_for(io.k.rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      std::fill_n(io.dk[s], io.dk.cols, 0.0f);
      std::fill_n(io.dv[s], io.dv.cols, 0.0f);
    }
  });
  Backward backward(shape, io);
  for (int64_t t = 0; t < io.q.rows; t += kWaveQueries)
    backward.add_wave(t, std::min(t + kWaveQueries, io.q.rows));
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
