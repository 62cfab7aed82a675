#include "kernels/sparse_attention_amx.h"

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>
#include <vector>

#include "base/check.h"
#include "base/parallel.h"
#include "kernels/key_union_amx.h"
#include "kernels/softmax_row.h"
#include "kernels/tile.h"

namespace fathom::kernels {

#if FATHOM_HAS_AMX_KERNELS

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Sixteen queries' scores of 32 keys become exponentials, of which `sum` takes the sum.
struct SoftmaxWeights {
  const uint32_t* selectors;
  int shift;  // of the queries' bits
  __m512 maximum, scale;
  float* scores;
  __m512& sum;

  AMX_INLINE __m512 operator()(int64_t i) const {
    float* const at = scores + i * kUnionQueries;
    const __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(at), maximum), scale);
    const __m512 e =
        _mm512_maskz_mov_ps(static_cast<__mmask16>(selectors[i] >> shift), exp_negative(x));
    sum = _mm512_add_ps(sum, e);
    _mm512_store_ps(at, e);
    return e;
  }
};

// Scores become exponentials of scale * (score - maximum), zero where a query did not select the
// key; sum_Q += them; rounded and by tiles they are the weights.
AMX_KERNEL void softmax_weights(const uint32_t* selectors, int64_t num_keys, float scale,
                                const float* maximum_Q, float* scores, float* sum_Q,
                                uint32_t* weight_tiles) {
  for (int q = 0; q < kUnionQueries; q += kAmxRows) {
    __m512 sum = _mm512_load_ps(sum_Q + q);
    for (int64_t i = 0; i < num_keys; i += kAmxK)
      store_weight_tile(SoftmaxWeights{selectors + i, q, _mm512_load_ps(maximum_Q + q),
                                       _mm512_set1_ps(scale), scores + i * kUnionQueries + q, sum},
                        weight_tiles + i / kAmxK * kTileWeights + q * kAmxPairs);
    _mm512_store_ps(sum_Q + q, sum);
  }
}

// mean[i][q] += exponentials[i][q] * factor_Q[q].
AMX_KERNEL void add_scaled(const float* exponentials, const float* factor_Q, int64_t num_keys,
                           float* mean) {
  const __m512 factor0 = _mm512_load_ps(factor_Q), factor1 = _mm512_load_ps(factor_Q + 16);
  for (int64_t i = 0; i < num_keys * kUnionQueries; i += kUnionQueries) {
    const __m512 first = _mm512_load_ps(exponentials + i);
    const __m512 second = _mm512_load_ps(exponentials + i + 16);
    _mm512_store_ps(mean + i, _mm512_fmadd_ps(first, factor0, _mm512_load_ps(mean + i)));
    _mm512_store_ps(mean + i + 16, _mm512_fmadd_ps(second, factor1, _mm512_load_ps(mean + i + 16)));
  }
}

// One thread's, in the forward pass.
struct ForwardScratch {
  std::vector<KeyUnion> unions;
  std::array<LineBuffer, 2> means;  // of the block's unions
  LineBuffer query_rows, query_columns, rows, scores, v_tiles, weight_tiles, sums;
};

class Forward {
 public:
  Forward(const AttentionShape& shape, const SparseAttentionForward& io) : shape_(shape), io_(io) {
    q_.assign(io.q, shape.num_heads);
    kv_.assign(io.k, io.v, shape.num_heads);
  }

  static constexpr int64_t kBlockQueries = 2 * kUnionQueries;

  // Head by head, so that what the block's queries select of one stays in the second cache.
  void add_block(int64_t begin, int64_t end) const {
    static thread_local ForwardScratch scratch;
    const TileShape tiles(kAmxCols);
    scratch.unions.resize(ceil_div(end - begin, kUnionQueries));
    for (size_t i = 0; i < scratch.unions.size(); ++i) {
      const int64_t t = begin + static_cast<int64_t>(i) * kUnionQueries;
      KeyUnion& keys = scratch.unions[i];
      keys.assign(io_.keys_T, t, std::min(t + kUnionQueries, end));
      const int64_t count = std::ssize(keys.padded_keys()) * kUnionQueries;
      if (io_.mean_probabilities) std::fill_n(scratch.means[i].reserve<float>(count), count, 0.0f);
    }
    for (int64_t h = 0; h < shape_.num_heads; ++h)
      for (size_t i = 0; i < scratch.unions.size(); ++i)
        add_head(scratch.unions[i], h, scratch, scratch.means[i].data<float>());
    if (!io_.mean_probabilities) return;
    for (size_t i = 0; i < scratch.unions.size(); ++i)
      collect_lists(scratch.unions[i], io_.keys_T, scratch.means[i].data<float>(),
                    io_.mean_probabilities);
  }

 private:
  // One head of 32 queries: first all scores, for their maximum, then what they weigh.
  void add_head(const KeyUnion& keys, int64_t h, ForwardScratch& scratch, float* mean) const {
    const int64_t num_keys = std::ssize(keys.padded_keys()), columns = sum_columns(shape_.v_dim);
    auto* const scores = scratch.scores.reserve<float>(num_keys * kUnionQueries);
    auto* const sums = scratch.sums.reserve<float>(kUnionQueries * columns);
    auto* const v_tiles = scratch.v_tiles.reserve<uint32_t>(num_keys * v_words());
    alignas(64) float maximum_Q[kUnionQueries], sum_Q[kUnionQueries] = {};
    std::fill_n(maximum_Q, kUnionQueries, kMinusInfinity);
    std::fill_n(sums, kUnionQueries * columns, 0.0f);
    score_keys(keys, h, scratch, scores, maximum_Q, v_tiles);
    auto* const weight_tiles =
        scratch.weight_tiles.reserve<uint32_t>(kUnionChunk / kAmxK * kTileWeights);
    for (int64_t i = 0; i < num_keys; i += kUnionChunk) {
      const int64_t count = std::min(kUnionChunk, num_keys - i);
      softmax_weights(keys.selectors() + i, count, shape_.scale, maximum_Q,
                      scores + i * kUnionQueries, sum_Q, weight_tiles);
      add_sums_by_query(weight_tiles, v_tiles + i / kAmxK * kTileWords,
                        num_keys / kAmxK * kTileWords, count, shape_.v_dim, sums);
    }
    finish(keys, h, maximum_Q, sum_Q, sums);
    if (!io_.mean_probabilities) return;
    alignas(64) float factor_Q[kUnionQueries];
    for (int64_t q = 0; q < kUnionQueries; ++q)
      factor_Q[q] = sum_Q[q] > 0 ? 1 / (sum_Q[q] * static_cast<float>(shape_.num_heads)) : 0;
    add_scaled(scores, factor_Q, num_keys, mean);
  }

  int64_t v_words() const { return kv_.words() - q_.words(); }

  // Packs the values, too, while a key's row is at hand.
  void score_keys(const KeyUnion& keys, int64_t h, ForwardScratch& scratch, float* scores,
                  float* maximum_Q, uint32_t* v_tiles) const {
    const int64_t num_keys = std::ssize(keys.padded_keys()), k_words = q_.words();
    auto* const query_rows = scratch.query_rows.reserve<uint32_t>(kUnionQueries * k_words);
    auto* const query_columns = scratch.query_columns.reserve<uint32_t>(kUnionQueries * k_words);
    auto* const rows = scratch.rows.reserve<uint32_t>(kUnionChunk * kv_.words());
    pack_queries(q_, h, keys, query_rows, query_columns, nullptr);
    for (int64_t i = 0; i < num_keys; i += kUnionChunk) {
      const int64_t count = std::min(kUnionChunk, num_keys - i);
      copy_key_rows(kv_, h, keys.padded_keys().subspan(i, count), rows);
      multiply_keys_and_queries({rows, count, k_words, kv_.words()}, query_columns,
                                scores + i * kUnionQueries);
      pack_as_rows({rows + k_words, count, v_words(), kv_.words()}, num_keys / kAmxK * kTileWords,
                   v_tiles + i / kAmxK * kTileWords);
      update_maximum(keys.selectors() + i, count, scores + i * kUnionQueries, maximum_Q);
    }
  }

  void finish(const KeyUnion& keys, int64_t h, const float* maximum_Q, const float* sum_Q,
              const float* sums) const {
    for (int64_t q = 0; q < keys.size(); ++q) {
      const int64_t t = keys.begin() + q;
      const bool is_empty = io_.keys_T[t].empty();
      const float factor = is_empty ? 0 : 1 / sum_Q[q];
      const float* const sum = sums + q * sum_columns(shape_.v_dim);
      float* const out = io_.out[t] + h * shape_.v_dim;
      for (int64_t d = 0; d < shape_.v_dim; ++d) out[d] = sum[d] * factor;
      io_.lse_HT[h][t] =
          is_empty ? kMinusInfinity : log_sum_exp(maximum_Q[q], shape_.scale, sum_Q[q]);
    }
  }

  const AttentionShape& shape_;
  const SparseAttentionForward& io_;
  HeadRows q_, kv_;
};

// Of 32 queries; missing ones have zeros.
struct QueryStatistics {
  alignas(64) float lse_Q[kUnionQueries] = {};
  alignas(64) float delta_Q[kUnionQueries] = {};  // out . dout
};

// Sixteen queries' gradients of their scores of 32 keys; stores them and the probabilities by keys.
struct ScoreGradients {
  const uint32_t* selectors;
  int shift;  // of the queries' bits
  __m512 lse, delta, scale;
  const float *scores, *dp;
  uint16_t *p_rows, *ds_rows;

  AMX_INLINE __m512 operator()(int64_t i) const {
    const int64_t at = i * kUnionQueries;
    const auto is_own = static_cast<__mmask16>(selectors[i] >> shift);
    const __m512 p = _mm512_maskz_mov_ps(
        is_own, exp_negative(log_probability(_mm512_load_ps(scores + at), scale, lse)));
    const __m512 ds = _mm512_maskz_mul_ps(is_own, _mm512_sub_ps(_mm512_load_ps(dp + at), delta),
                                          _mm512_mul_ps(p, scale));
    store_rounded(p, p_rows + at);
    store_rounded(ds, ds_rows + at);
    return ds;
  }
};

// From scores and dL/dp of num_keys: probabilities and the scores' gradients, zero where a query
// did not select the key, rounded: both by keys, the gradients by tiles of queries, too.
AMX_KERNEL void score_gradients(const uint32_t* selectors, int64_t num_keys, float scale,
                                const QueryStatistics& queries, const float* scores,
                                const float* dp, uint16_t* p_rows, uint16_t* ds_rows,
                                uint32_t* ds_tiles) {
  for (int q = 0; q < kUnionQueries; q += kAmxRows)
    for (int64_t i = 0; i < num_keys; i += kAmxK) {
      const int64_t at = i * kUnionQueries + q;
      store_weight_tile(ScoreGradients{selectors + i, q, _mm512_load_ps(queries.lse_Q + q),
                                       _mm512_load_ps(queries.delta_Q + q), _mm512_set1_ps(scale),
                                       scores + at, dp + at, p_rows + at, ds_rows + at},
                        ds_tiles + i / kAmxK * kTileWeights + q * kAmxPairs);
    }
}

// One thread's, in the backward pass.
struct BackwardScratch {
  LineBuffer q_rows, q_columns, q_tiles, dout_rows, dout_columns, dout_tiles;  // of 32 queries
  LineBuffer kv_rows, k_tiles, scores, dp, p_rows, ds_rows, ds_tiles, dkv;     // of a chunk
  LineBuffer dq, head_dkv;
};

// Operands of one head of 32 queries, and where their gradients are summed.
struct HeadOfQueries {
  const uint32_t *q_columns, *q_tiles, *dout_columns, *dout_tiles;
  QueryStatistics statistics;
  float* dq;
};

// Head by head: no two write to the same place. A key's dk and dv are summed side by side, one
// key's behind another's, and copied at the end: rows of all heads lie on three times as many
// pages.
class Backward {
 public:
  Backward(const AttentionShape& shape, const SparseAttentionBackward& io)
      : shape_(shape), io_(io), unions_(ceil_div(io.q.rows, kUnionQueries)) {
    q_.assign(io.q, shape.num_heads);
    kv_.assign(io.k, io.v, shape.num_heads);
    dout_.assign(io.dout, shape.num_heads);
    base::parallel_for(std::ssize(unions_), 4, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        unions_[i].assign(io.keys_T, i * kUnionQueries,
                          std::min((i + 1) * kUnionQueries, io.q.rows));
    });
  }

  void add_head(int64_t h) const {
    static thread_local BackwardScratch scratch;
    const TileShape tiles(kAmxCols);
    const int64_t num_keys = io_.k.rows, columns = dk_columns() + dv_columns();
    const View2<float> dkv(scratch.head_dkv.reserve<float>(num_keys * columns), num_keys, columns);
    std::fill_n(dkv.data, num_keys * columns, 0.0f);
    for (const KeyUnion& keys : unions_) add_union(keys, h, scratch, dkv);
    for (int64_t s = 0; s < num_keys; ++s) {
      std::copy_n(dkv[s], shape_.qk_dim, io_.dk[s] + h * shape_.qk_dim);
      std::copy_n(dkv[s] + dk_columns(), shape_.v_dim, io_.dv[s] + h * shape_.v_dim);
    }
  }

 private:
  int64_t dk_columns() const { return sum_columns(shape_.qk_dim); }
  int64_t dv_columns() const { return sum_columns(shape_.v_dim); }

  void add_union(const KeyUnion& keys, int64_t h, BackwardScratch& scratch,
                 View2<float> dkv) const {
    const HeadOfQueries head = prepare(keys, h, scratch);
    const int64_t num_keys = std::ssize(keys.padded_keys());
    for (int64_t i = 0; i < num_keys; i += kUnionChunk)
      add_chunk(keys, i, std::min(kUnionChunk, num_keys - i), h, head, scratch, dkv);
    for (int64_t q = 0; q < keys.size(); ++q)
      std::copy_n(head.dq + q * dk_columns(), shape_.qk_dim,
                  io_.dq[keys.begin() + q] + h * shape_.qk_dim);
  }

  HeadOfQueries prepare(const KeyUnion& keys, int64_t h, BackwardScratch& scratch) const {
    const auto pack = [&](const HeadRows& x, LineBuffer& rows_buffer, LineBuffer& columns_buffer,
                          LineBuffer& tiles_buffer) {
      const int64_t size = kUnionQueries * x.words();
      auto* const rows = rows_buffer.reserve<uint32_t>(size);
      auto* const columns = columns_buffer.reserve<uint32_t>(size);
      auto* const tiles = tiles_buffer.reserve<uint32_t>(size);
      pack_queries(x, h, keys, rows, columns, tiles);
      return std::pair(columns, tiles);
    };
    HeadOfQueries head{};
    std::tie(head.q_columns, head.q_tiles) =
        pack(q_, scratch.q_rows, scratch.q_columns, scratch.q_tiles);
    std::tie(head.dout_columns, head.dout_tiles) =
        pack(dout_, scratch.dout_rows, scratch.dout_columns, scratch.dout_tiles);
    for (int64_t q = 0; q < keys.size(); ++q) {
      const int64_t t = keys.begin() + q;
      head.statistics.lse_Q[q] = io_.lse_HT[h][t];
      head.statistics.delta_Q[q] = dot_of_rounded(io_.out[t] + h * shape_.v_dim,
                                                  io_.dout[t] + h * shape_.v_dim, shape_.v_dim);
    }
    head.dq = scratch.dq.reserve<float>(kUnionQueries * dk_columns());
    std::fill_n(head.dq, kUnionQueries * dk_columns(), 0.0f);
    return head;
  }

  // dq, and this chunk's dk and dv.
  void add_chunk(const KeyUnion& keys, int64_t begin, int64_t count, int64_t h,
                 const HeadOfQueries& head, BackwardScratch& scratch, View2<float> dkv) const {
    constexpr int64_t kPairs = kUnionChunk * kUnionQueries;
    const int64_t k_words = q_.words(), v_words = dout_.words(),
                  tiles_stride = count / kAmxK * kTileWords;
    auto* const rows = scratch.kv_rows.reserve<uint32_t>(kUnionChunk * kv_.words());
    auto* const k_tiles = scratch.k_tiles.reserve<uint32_t>(kUnionChunk * k_words);
    auto* const scores = scratch.scores.reserve<float>(kPairs);
    auto* const dp = scratch.dp.reserve<float>(kPairs);
    auto* const p_rows = scratch.p_rows.reserve<uint16_t>(kPairs);
    auto* const ds_rows = scratch.ds_rows.reserve<uint16_t>(kPairs);
    auto* const ds_tiles = scratch.ds_tiles.reserve<uint32_t>(kPairs / 2);
    const PairRows k{rows, count, k_words, kv_.words()};
    copy_key_rows(kv_, h, keys.padded_keys().subspan(begin, count), rows);
    multiply_keys_and_queries(k, head.q_columns, scores);
    multiply_keys_and_queries({rows + k_words, count, v_words, kv_.words()}, head.dout_columns, dp);
    pack_as_rows(k, tiles_stride, k_tiles);
    score_gradients(keys.selectors() + begin, count, shape_.scale, head.statistics, scores, dp,
                    p_rows, ds_rows, ds_tiles);
    add_sums_by_query(ds_tiles, k_tiles, tiles_stride, count, shape_.qk_dim, head.dq);
    auto* const sums = scratch.dkv.reserve<float>(kUnionChunk * dkv.cols);
    sum_by_key(ds_rows, head.q_tiles, 1, count, k_words, shape_.qk_dim, dkv.cols, sums);
    sum_by_key(p_rows, head.dout_tiles, 1, count, v_words, shape_.v_dim, dkv.cols,
               sums + dk_columns());
    add_to_rows(sums, keys.keys().subspan(begin, std::min(count, std::ssize(keys.keys()) - begin)),
                dkv);
  }

  const AttentionShape& shape_;
  const SparseAttentionBackward& io_;
  HeadRows q_, kv_, dout_;
  std::vector<KeyUnion> unions_;
};

}  // namespace

void sparse_attention_forward_amx(const AttentionShape& shape, const SparseAttentionForward& io) {
  const Forward forward(shape, io);
  constexpr int64_t kBlock = Forward::kBlockQueries;
  base::parallel_for(ceil_div(io.q.rows, kBlock), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      forward.add_block(i * kBlock, std::min((i + 1) * kBlock, io.q.rows));
  });
}

void sparse_attention_backward_amx(const AttentionShape& shape, const SparseAttentionBackward& io) {
  const Backward backward(shape, io);
  base::parallel_for(shape.num_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) backward.add_head(h);
  });
}

#else

void sparse_attention_forward_amx(const AttentionShape&, const SparseAttentionForward&) {
  CHECK(false, "no AMX here");
}
void sparse_attention_backward_amx(const AttentionShape&, const SparseAttentionBackward&) {
  CHECK(false, "no AMX here");
}

#endif

}  // namespace fathom::kernels
