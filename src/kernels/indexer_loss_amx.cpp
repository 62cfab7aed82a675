#include "kernels/indexer_loss_amx.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "base/parallel.h"
#include "kernels/gathered_rows.h"
#include "kernels/key_union_amx.h"
#include "kernels/softmax_row.h"
#include "kernels/tile.h"

namespace fathom::kernels {

#if FATHOM_HAS_AMX_KERNELS

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kBlockUnions = 8;  // between sums by queries and sums by keys

// scores[i][q] += w_Q[q] relu(dots[i][q]): one head of eq. (1).
AMX_KERNEL void add_head_scores(const float* dots, const float* w_Q, int64_t num_keys,
                                float* scores) {
  const __m512 w0 = _mm512_load_ps(w_Q), w1 = _mm512_load_ps(w_Q + 16), zero = _mm512_setzero_ps();
  for (int64_t i = 0; i < num_keys * kUnionQueries; i += kUnionQueries) {
    const __m512 z0 = _mm512_max_ps(_mm512_load_ps(dots + i), zero);
    const __m512 z1 = _mm512_max_ps(_mm512_load_ps(dots + i + 16), zero);
    _mm512_store_ps(scores + i, _mm512_fmadd_ps(z0, w0, _mm512_load_ps(scores + i)));
    _mm512_store_ps(scores + i + 16, _mm512_fmadd_ps(z1, w1, _mm512_load_ps(scores + i + 16)));
  }
}

// Of 32 queries. The KL is sum p log p + mass log(sum) - cross.
struct SoftmaxSums {
  alignas(64) float maximum_Q[kUnionQueries];
  alignas(64) float sum_Q[kUnionQueries] = {};    // of exponentials
  alignas(64) float mass_Q[kUnionQueries] = {};   // of p
  alignas(64) float cross_Q[kUnionQueries] = {};  // of p * (score - maximum)
};

// Scores become exponentials, zero where a query did not select the key.
AMX_KERNEL void exponentiate(const uint32_t* selectors, int64_t num_keys, const float* p,
                             float* scores, SoftmaxSums& sums) {
  for (int q = 0; q < kUnionQueries; q += kAmxCols) {
    const __m512 maximum = _mm512_load_ps(sums.maximum_Q + q);
    __m512 sum = _mm512_setzero_ps(), mass = sum, cross = sum;
    for (int64_t i = 0; i < num_keys; ++i) {
      float* const at = scores + i * kUnionQueries + q;
      const auto is_own = static_cast<__mmask16>(selectors[i] >> q);
      const __m512 centred = _mm512_sub_ps(_mm512_load_ps(at), maximum);
      const __m512 teacher = _mm512_load_ps(p + i * kUnionQueries + q);
      const __m512 e = _mm512_maskz_mov_ps(is_own, exp_negative(centred));
      sum = _mm512_add_ps(sum, e);
      mass = _mm512_add_ps(mass, teacher);
      cross = _mm512_mask3_fmadd_ps(teacher, centred, cross, is_own);
      _mm512_store_ps(at, e);
    }
    _mm512_store_ps(sums.sum_Q + q, sum);
    _mm512_store_ps(sums.mass_Q + q, mass);
    _mm512_store_ps(sums.cross_Q + q, cross);
  }
}

// Exponentials become dL/dI = softmax(I) - p.
AMX_KERNEL void subtract_teacher(const float* p, const float* factor_Q, int64_t num_keys,
                                 float* scores) {
  const __m512 factor0 = _mm512_load_ps(factor_Q), factor1 = _mm512_load_ps(factor_Q + 16);
  for (int64_t i = 0; i < num_keys * kUnionQueries; i += kUnionQueries) {
    const __m512 first = _mm512_load_ps(scores + i), second = _mm512_load_ps(scores + i + 16);
    _mm512_store_ps(scores + i, _mm512_fmsub_ps(first, factor0, _mm512_load_ps(p + i)));
    _mm512_store_ps(scores + i + 16, _mm512_fmsub_ps(second, factor1, _mm512_load_ps(p + i + 16)));
  }
}

// Sixteen queries' dL/dz = g w 1[z > 0] of 32 keys, which it stores by keys; dw += g relu(z).
struct HeadGradients {
  const float *z, *g;
  __m512 w;
  __m512& dw;
  uint16_t* dz_rows;

  AMX_INLINE __m512 operator()(int64_t i) const {
    const __m512 value = _mm512_load_ps(z + i * kUnionQueries);
    const __m512 gradient = _mm512_load_ps(g + i * kUnionQueries);
    const __mmask16 is_on = _mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_GT_OQ);
    dw = _mm512_mask3_fmadd_ps(gradient, value, dw, is_on);
    const __m512 dz = _mm512_maskz_mul_ps(is_on, gradient, w);
    store_rounded(dz, dz_rows + i * kUnionQueries);
    return dz;
  }
};

AMX_KERNEL void head_gradients(const float* z, const float* g, const float* w_Q, int64_t num_keys,
                               float* dw_Q, uint16_t* dz_rows, uint32_t* dz_tiles) {
  for (int q = 0; q < kUnionQueries; q += kAmxRows) {
    __m512 dw = _mm512_load_ps(dw_Q + q);
    for (int64_t i = 0; i < num_keys; i += kAmxK) {
      const int64_t at = i * kUnionQueries + q;
      store_weight_tile(HeadGradients{z + at, g + at, _mm512_load_ps(w_Q + q), dw, dz_rows + at},
                        dz_tiles + i / kAmxK * kTileWeights + q * kAmxPairs);
    }
    _mm512_store_ps(dw_Q + q, dw);
  }
}

// One thread's.
struct Scratch {
  LineBuffer query_rows, query_columns, query_tiles, weights, dweights, dq;  // of all heads
  LineBuffer k_rows, teacher, scores;                                        // of all keys
  LineBuffer z, dz_rows, dz_tiles, k_tiles;                                  // of a chunk
};

// Operands of all heads of 32 queries, and where their gradients are summed.
struct Heads {
  uint32_t *columns, *tiles;  // [J] of pack_as_columns and of pack_as_rows
  float *w_JQ, *dw_JQ;
  float* dq;  // [J][32][sum_columns(X)]
};

// Blocks of queries: first each union's loss, dq, dw and what it adds to dk, then dk.
class SelectedLoss {
 public:
  SelectedLoss(const IndexerLossInput& in, const IndexerLossOutput& out)
      : loss_T(in.q_TJX.rows), in_(in), out_(out) {
    q_.assign(in.q_TJX, num_heads());
    k_.assign(in.k_SX, 1);
  }

  std::vector<double> loss_T;

  void add_block(int64_t begin, int64_t end) {
    const int64_t num_unions = ceil_div(end - begin, kUnionQueries);
    base::parallel_for(num_unions, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t t = begin + i * kUnionQueries;
        unions_[i].assign(in_.keys_T, t, std::min(t + kUnionQueries, end));
        add_union(unions_[i], dk_[i]);
      }
    });
    base::parallel_for(out_.dk_SX.rows, kRowsAtOnce, [&](int64_t first, int64_t last) {
      for (int64_t i = 0; i < num_unions; ++i) add_to_keys(i, first, last);
    });
  }

 private:
  static constexpr int64_t kRowsAtOnce = 4096;

  int64_t num_heads() const { return in_.w_TJ.cols; }
  int64_t dim() const { return in_.k_SX.cols; }

  void add_union(const KeyUnion& keys, LineBuffer& dk_buffer) {
    static thread_local Scratch scratch;
    const TileShape tiles(kAmxCols);
    const int64_t num_keys = std::ssize(keys.padded_keys());
    const Heads heads = prepare(keys, scratch);
    auto* const k_rows = scratch.k_rows.reserve<uint32_t>(num_keys * k_.words());
    auto* const p = scratch.teacher.reserve<float>(num_keys * kUnionQueries);
    auto* const scores = scratch.scores.reserve<float>(num_keys * kUnionQueries);
    copy_key_rows(k_, 0, keys.padded_keys(), k_rows);
    spread_lists(keys, in_.keys_T, in_.probabilities, p);
    score_keys(num_keys, k_rows, heads, scratch, scores);
    take_losses(keys, p, scores);
    auto* const dk = dk_buffer.reserve<float>(num_keys * sum_columns(dim()));
    for (int64_t i = 0; i < num_keys; i += kUnionChunk)
      add_chunk(std::min(kUnionChunk, num_keys - i), k_rows + i * k_.words(),
                scores + i * kUnionQueries, heads, scratch, dk + i * sum_columns(dim()));
    for (int64_t q = 0; q < keys.size(); ++q)
      for (int64_t j = 0; j < num_heads(); ++j) {
        const int64_t t = keys.begin() + q;
        out_.dw_TJ[t][j] = heads.dw_JQ[j * kUnionQueries + q];
        std::copy_n(heads.dq + (j * kUnionQueries + q) * sum_columns(dim()), dim(),
                    out_.dq_TJX[t] + j * dim());
      }
  }

  Heads prepare(const KeyUnion& keys, Scratch& scratch) const {
    const int64_t size = kUnionQueries * q_.words();
    const int64_t dq_size = num_heads() * kUnionQueries * sum_columns(dim());
    auto* const rows = scratch.query_rows.reserve<uint32_t>(size);
    Heads heads{scratch.query_columns.reserve<uint32_t>(num_heads() * size),
                scratch.query_tiles.reserve<uint32_t>(num_heads() * size),
                scratch.weights.reserve<float>(num_heads() * kUnionQueries),
                scratch.dweights.reserve<float>(num_heads() * kUnionQueries),
                scratch.dq.reserve<float>(dq_size)};
    std::fill_n(heads.dq, dq_size, 0.0f);
    std::fill_n(heads.w_JQ, num_heads() * kUnionQueries, 0.0f);
    std::fill_n(heads.dw_JQ, num_heads() * kUnionQueries, 0.0f);
    for (int64_t j = 0; j < num_heads(); ++j) {
      pack_queries(q_, j, keys, rows, heads.columns + j * size, heads.tiles + j * size);
      for (int64_t q = 0; q < keys.size(); ++q)
        heads.w_JQ[j * kUnionQueries + q] = in_.w_TJ[keys.begin() + q][j];
    }
    return heads;
  }

  void score_keys(int64_t num_keys, const uint32_t* k_rows, const Heads& heads, Scratch& scratch,
                  float* scores) const {
    auto* const z = scratch.z.reserve<float>(kUnionChunk * kUnionQueries);
    std::fill_n(scores, num_keys * kUnionQueries, 0.0f);
    for (int64_t i = 0; i < num_keys; i += kUnionChunk) {
      const int64_t count = std::min(kUnionChunk, num_keys - i);
      for (int64_t j = 0; j < num_heads(); ++j) {
        multiply(k_rows + i * k_.words(), count, j, heads, z);
        add_head_scores(z, heads.w_JQ + j * kUnionQueries, count, scores + i * kUnionQueries);
      }
    }
  }

  void multiply(const uint32_t* k_rows, int64_t count, int64_t j, const Heads& heads,
                float* z) const {
    multiply_keys_and_queries({k_rows, count, k_.words(), k_.words()},
                              heads.columns + j * kUnionQueries * q_.words(), z);
  }

  // Scores become their gradients.
  void take_losses(const KeyUnion& keys, const float* p, float* scores) {
    const int64_t num_keys = std::ssize(keys.padded_keys());
    SoftmaxSums sums;
    std::fill_n(sums.maximum_Q, kUnionQueries, kMinusInfinity);
    update_maximum(keys.selectors(), num_keys, scores, sums.maximum_Q);
    exponentiate(keys.selectors(), num_keys, p, scores, sums);
    alignas(64) float factor_Q[kUnionQueries] = {};
    for (int64_t q = 0; q < keys.size(); ++q) {
      const int64_t t = keys.begin() + q;
      if (in_.keys_T[t].empty()) continue;
      factor_Q[q] = 1 / sums.sum_Q[q];
      loss_T[t] =
          sum_p_log_p(in_.probabilities + in_.keys_T.begins_T1[t], std::ssize(in_.keys_T[t])) +
          sums.mass_Q[q] * std::log(sums.sum_Q[q]) - sums.cross_Q[q];
    }
    subtract_teacher(p, factor_Q, num_keys, scores);
  }

  // dw, dq and this chunk's dk, from dL/dI.
  void add_chunk(int64_t count, const uint32_t* k_rows, const float* g, const Heads& heads,
                 Scratch& scratch, float* dk) const {
    auto* const z = scratch.z.reserve<float>(kUnionChunk * kUnionQueries);
    auto* const dz_rows =
        scratch.dz_rows.reserve<uint16_t>(num_heads() * kUnionChunk * kUnionQueries);
    auto* const dz_tiles = scratch.dz_tiles.reserve<uint32_t>(kUnionChunk * kUnionQueries / 2);
    auto* const k_tiles = scratch.k_tiles.reserve<uint32_t>(kUnionChunk * k_.words());
    const int64_t tiles_stride = count / kAmxK * kTileWords;
    pack_as_rows({k_rows, count, k_.words(), k_.words()}, tiles_stride, k_tiles);
    for (int64_t j = 0; j < num_heads(); ++j) {
      multiply(k_rows, count, j, heads, z);
      head_gradients(z, g, heads.w_JQ + j * kUnionQueries, count, heads.dw_JQ + j * kUnionQueries,
                     dz_rows + j * count * kUnionQueries, dz_tiles);
      add_sums_by_query(dz_tiles, k_tiles, tiles_stride, count, dim(),
                        heads.dq + j * kUnionQueries * sum_columns(dim()));
    }
    sum_by_key(dz_rows, heads.tiles, num_heads(), count, q_.words(), dim(), sum_columns(dim()), dk);
  }

  // What the i-th union adds to rows [begin, end) of dk.
  void add_to_keys(int64_t i, int64_t begin, int64_t end) const {
    const auto keys = unions_[i].keys();
    const auto first = std::lower_bound(keys.begin(), keys.end(), begin);
    const auto last = std::lower_bound(first, keys.end(), end);
    add_to_rows(dk_[i].data<float>() + (first - keys.begin()) * sum_columns(dim()), {first, last},
                out_.dk_SX);
  }

  const IndexerLossInput& in_;
  const IndexerLossOutput& out_;
  HeadRows q_, k_;
  std::array<KeyUnion, kBlockUnions> unions_;
  std::array<LineBuffer, kBlockUnions> dk_;
};

}  // namespace

void indexer_loss_of_selected_amx(const IndexerLossInput& in, IndexerLossOutput& out) {
  const int64_t tokens = in.q_TJX.rows;
  clear_rows(out.dk_SX);
  SelectedLoss selected(in, out);
  constexpr int64_t kBlock = kBlockUnions * kUnionQueries;
  for (int64_t t = 0; t < tokens; t += kBlock) selected.add_block(t, std::min(t + kBlock, tokens));
  out.loss = std::accumulate(selected.loss_T.begin(), selected.loss_T.end(), 0.0);
  out.recall = 0;
}

#else

void indexer_loss_of_selected_amx(const IndexerLossInput&, IndexerLossOutput&) {
  CHECK(false, "no AMX here");
}

#endif

}  // namespace fathom::kernels
