#include "kernels/indexer_loss_bf16.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "base/check.h"
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

constexpr int64_t kBlockQueries = 64;  // between sums by queries and sums by keys
constexpr int64_t kColumns = 32;       // of dk, that a thread takes
static_assert(kBlockQueries % kGroupQueries == 0);

// A sequence's operands, rounded.
struct RoundedRows {
  HeadRows q, k;              // attention's, where the input has no probabilities
  HeadRows q_index, k_index;  // the indexer's
};

// One thread's. Rows of `padded` elements begin with a cache line.
struct Scratch {
  PaddedKeys keys;
  LineBuffer dots, teacher, scores, z;
};

// p = mean over heads of exp(scale * dots - lse).
BF16_KERNEL void mean_probabilities(const float* dots, const float* lse_H, int64_t lse_stride,
                                    int64_t num_heads, int64_t padded, float scale, float* p) {
  const float share = 1.0f / static_cast<float>(num_heads);
  for (int64_t i = 0; i < padded; i += 16) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t h = 0; h < num_heads; ++h)
      sum += exp(log_probability(_mm512_load_ps(dots + h * padded + i), _mm512_set1_ps(scale),
                                 _mm512_set1_ps(lse_H[h * lse_stride])));
    _mm512_store_ps(p + i, sum * share);
  }
}

// I = sum_j w_j relu(z_j), eq. (1), -inf beyond the count. Returns the maximum.
BF16_KERNEL float sum_heads(const float* z, int64_t head_step, std::span<const float> w_J,
                            int64_t count, int64_t padded, float* scores) {
  __m512 most = _mm512_set1_ps(kMinusInfinity);
  for (int64_t i = 0; i < padded; i += 16) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < std::ssize(w_J); ++j)
      sum =
          _mm512_fmadd_ps(_mm512_max_ps(_mm512_load_ps(z + j * head_step + i), _mm512_setzero_ps()),
                          _mm512_set1_ps(w_J[j]), sum);
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

// The teacher of query t's keys, zero beyond them.
void fill_teacher(const RoundedRows& rows, const IndexerLossInput& in, int64_t t, Scratch& scratch,
                  float* p) {
  const int64_t count = scratch.keys.count(), padded = scratch.keys.padded();
  if (in.probabilities) {
    std::copy_n(in.probabilities + in.keys_T.begins_T1[t], count, p);
  } else {
    auto* const dots = scratch.dots.reserve<float>(in.shape.num_heads * padded);
    for (int64_t h = 0; h < in.shape.num_heads; ++h)
      gathered_dots(rows.q, t, rows.k, h, scratch.keys.all(), dots + h * padded);
    mean_probabilities(dots, in.lse_HT.data + t, in.lse_HT.stride, in.shape.num_heads, padded,
                       in.shape.scale, p);
  }
  std::fill(p + count, p + padded, 0.0f);
}

// Blocks of queries: first each query's loss, dq and dw, then what they add to dk.
class SelectedLoss {
 public:
  SelectedLoss(const IndexerLossInput& in, const IndexerLossOutput& out)
      : loss_T(in.q_TJX.rows), in_(in), out_(out) {
    if (!in.probabilities) {
      rows_.q.assign(in.q, in.shape.num_heads);
      rows_.k.assign(in.k, in.shape.num_heads);
    }
    rows_.q_index.assign(in.q_TJX, num_heads());
    rows_.k_index.assign(in.k_SX, 1);
  }

  std::vector<double> loss_T;

  void add_block(int64_t begin, int64_t end) {
    groups_.resize(ceil_div(end - begin, kGroupQueries));
    base::parallel_for(std::ssize(groups_), 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t t = begin + i * kGroupQueries;
        groups_[i].queries.assign(in_.keys_T, t, std::min(t + kGroupQueries, end));
        add_group(groups_[i]);
      }
    });
    const int64_t dim = out_.dk_SX.cols;
    base::parallel_for(ceil_div(dim, kColumns), 1, [&](int64_t first, int64_t last) {
      for (int64_t x = first * kColumns; x < std::min(last * kColumns, dim); x += kColumns)
        for (const Group& group : groups_) add_to_keys(group, x, std::min(kColumns, dim - x));
    });
  }

 private:
  struct Group {
    QueryGroup queries;
    LineBuffer weights, x;  // pairs of each head
    uint32_t *weight_pairs = nullptr, *x_pairs = nullptr;
  };

  int64_t num_heads() const { return in_.w_TJ.cols; }
  int64_t dim() const { return in_.k_SX.cols; }

  void add_group(Group& group) {
    static thread_local Scratch scratch;
    const QueryGroup& queries = group.queries;
    const int64_t padded = queries.most_padded(), step = kGroupPairs * queries.num_padded_keys();
    auto* const dz = scratch.z.reserve<float>(num_heads() * kGroupQueries * padded);
    for (int64_t q = 0; q < queries.size(); ++q)
      add_query(queries.begin() + q, padded, scratch, dz + q * padded);
    group.weight_pairs = group.weights.reserve<uint32_t>(num_heads() * step);
    group.x_pairs = group.x.reserve<uint32_t>(num_heads() * kGroupPairs * dim());
    for (int64_t j = 0; j < num_heads(); ++j) {
      std::array<float*, kGroupQueries> weights{};
      for (int64_t q = 0; q < queries.size(); ++q)
        weights[q] = dz + (j * kGroupQueries + q) * padded;
      pair_weights(queries, weights, group.weight_pairs + j * step);
      pair_rows(queries, head_columns(in_.q_TJX, j, dim()), dim(),
                group.x_pairs + j * kGroupPairs * dim());
    }
  }

  // Head j's dL/dz goes to dz + j * kGroupQueries * head_step.
  void add_query(int64_t t, int64_t head_step, Scratch& scratch, float* dz) {
    scratch.keys.assign(in_.keys_T[t]);
    const int64_t count = scratch.keys.count(), padded = scratch.keys.padded();
    std::fill_n(out_.dq_TJX[t], out_.dq_TJX.cols, 0.0f);
    std::fill_n(out_.dw_TJ[t], out_.dw_TJ.cols, 0.0f);
    if (count == 0) return;
    auto* const p = scratch.teacher.reserve<float>(padded);
    fill_teacher(rows_, in_, t, scratch, p);
    auto* const scores = scratch.scores.reserve<float>(padded);
    const auto z = [&](int64_t j) { return dz + j * kGroupQueries * head_step; };
    for (int64_t i = 0; i < padded; i += kChunkKeys)  // all heads read the same rows
      for (int64_t j = 0; j < num_heads(); ++j)
        gathered_dots(rows_.q_index, t, rows_.k_index, j, scratch.keys.slice(i, kChunkKeys),
                      z(j) + i);
    const float maximum =
        sum_heads(dz, kGroupQueries * head_step, {in_.w_TJ[t], static_cast<size_t>(num_heads())},
                  count, padded, scores);
    loss_T[t] = sum_p_log_p(p, padded) + softmax_minus_teacher(p, maximum, padded, scores);
    alignas(64) uint32_t weights[kChunkKeys / 2];
    for (int64_t i = 0; i < padded; i += kChunkKeys) {
      const auto chunk = scratch.keys.slice(i, kChunkKeys);
      for (int64_t j = 0; j < num_heads(); ++j) {
        out_.dw_TJ[t][j] +=
            head_gradient(scores + i, in_.w_TJ[t][j], std::ssize(chunk), z(j) + i, weights);
        add_gathered_sum(weights, 1.0f, rows_.k_index, j, chunk, out_.dq_TJX[t] + j * dim());
      }
    }
  }

  void add_to_keys(const Group& group, int64_t x, int64_t cols) const {
    scatter_add(group.queries,
                {group.weight_pairs, group.queries.num_padded_keys(), group.x_pairs + x, dim(),
                 num_heads() * kGroupPairs},
                {out_.dk_SX.data + x, out_.dk_SX.rows, cols, out_.dk_SX.stride});
  }

  const IndexerLossInput& in_;
  const IndexerLossOutput& out_;
  RoundedRows rows_;
  std::vector<Group> groups_;
};

}  // namespace

void indexer_loss_of_selected_bf16(const IndexerLossInput& in, IndexerLossOutput& out) {
  const int64_t tokens = in.q_TJX.rows;
  clear_rows(out.dk_SX);
  SelectedLoss selected(in, out);
  for (int64_t t = 0; t < tokens; t += kBlockQueries)
    selected.add_block(t, std::min(t + kBlockQueries, tokens));
  out.loss = std::accumulate(selected.loss_T.begin(), selected.loss_T.end(), 0.0);
  out.recall = 0;
}

#else

void indexer_loss_of_selected_bf16(const IndexerLossInput&, IndexerLossOutput&) {
  CHECK(false, "no bf16 kernels here");
}

#endif

}  // namespace fathom::kernels
