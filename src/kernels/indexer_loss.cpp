#include "kernels/indexer_loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/parallel.h"
#include "kernels/amx_tile.h"
#include "kernels/gathered_rows.h"
#include "kernels/indexer_loss_amx.h"
#include "kernels/indexer_loss_bf16.h"
#include "kernels/matmul.h"
#include "kernels/queries_of_keys.h"
#include "kernels/simd.h"
#include "kernels/softmax_row.h"
#include "kernels/top_k.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kQueryBlock = 64;
constexpr int64_t kKeyBlock = 128;
constexpr int64_t kSelectingQueries = 32;  // at most, that add to keys together
constexpr int64_t kMostWeights = 1 << 18;  // of theirs
// Blocks of queries go round so many sums of dk, which are added in order at the end: the bits do
// not depend on the number of threads. More would let more threads work, and take more memory.
constexpr int64_t kNumParts = 8;

Strided rows_of(View2<const float> x) { return {x.data, x.stride, 1}; }
Strided transpose_of(View2<const float> x) { return {x.data, 1, x.stride}; }

// p += exp(scale * score - lse) * factor: one head's share of the teacher.
KERNEL void add_probabilities(const float* scores, int64_t count, float scale, float lse,
                              float factor, float* p) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    store(p + i, load(p + i) + exp(load(scores + i) * scale - lse) * factor);
  if (i == count) return;
  const F32x8 last = exp(load_partial(scores + i, count - i) * scale - lse) * factor;
  store_partial(p + i, load_partial(p + i, count - i) + last, count - i);
}

// I += w * relu(z): one head's share of the index scores, eq. (1).
KERNEL void add_relu(const float* z, int64_t count, float w, float* scores) {
  for (int64_t i = 0; i < count; ++i) scores[i] += w * (z[i] > 0 ? z[i] : 0.0f);
}

// sum p (log p - I)
KERNEL float cross_term(const float* p, const float* scores, int64_t count) {
  F32x8 sum{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    sum += load(p + i) * (log(load(p + i)) - load(scores + i));
  if (i < count) {
    const F32x8 rest = load_partial(p + i, count - i);
    sum += rest * (log(rest) - load_partial(scores + i, count - i));
  }
  return horizontal_sum(sum);
}

KERNEL float sum_of(const float* x, int64_t count) {
  F32x8 sum{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += load(x + i);
  if (i < count) sum += load_partial(x + i, count - i);
  return horizontal_sum(sum);
}

// scores <- scores * factor - p: softmax(I) - p from exponentials of I.
KERNEL void subtract_teacher(const float* p, int64_t count, float factor, float* scores) {
  for (int64_t i = 0; i < count; ++i) scores[i] = scores[i] * factor - p[i];
}

// z <- dL/dz = g w 1[z > 0]; returns dL/dw = sum g relu(z).
KERNEL float head_gradient(const float* g, int64_t count, float w, float* z) {
  F32x8 sum{};
  int64_t i = 0;
  const F32x8 zero{};
  for (; i + kLanes <= count; i += kLanes) {
    const F32x8 value = load(z + i), gradient = load(g + i);
    sum += gradient * max(value, zero);
    store(z + i, value > zero ? gradient * w : zero);
  }
  float result = horizontal_sum(sum);
  for (; i < count; ++i) {
    result += g[i] * std::max(z[i], 0.0f);
    z[i] = z[i] > 0 ? g[i] * w : 0.0f;
  }
  return result;
}

// One query's loss; its index scores become dL/dI.
double loss_row(const float* p, int64_t count, float* scores) {
  const float maximum = max_row(scores, count);
  const double cross = cross_term(p, scores, count), mass = sum_of(p, count);
  const double sum = exp_row(scores, count, maximum, 1.0f, scores);
  subtract_teacher(p, count, static_cast<float>(1 / sum), scores);
  return cross + mass * (maximum + std::log(sum));
}

double recall_row(const float* p, int64_t count, const float* scores, int64_t k,
                  std::vector<int32_t>& best) {
  top_k({scores, static_cast<size_t>(count)}, k, best);
  double mass = 0;
  for (int32_t s : best) mass += p[s];
  return mass;
}

// One thread's work on blocks of queries, summing into its part's dk.
class BlockLoss {
 public:
  BlockLoss(const IndexerLossInput& input, const IndexerLossOutput& output, View2<float> dk)
      : in_(input), out_(output), dk_(dk) {}

  double loss = 0, recall = 0;

  void add(int64_t t_begin, int64_t t_end) {
    if (in_.keys_T.empty()) return add_dense(t_begin, t_end);
    const int64_t at_once = selecting_queries(t_begin, t_end);
    for (int64_t t = t_begin; t < t_end; t += at_once)
      add_selected(t, std::min(t + at_once, t_end));
  }

 private:
  int64_t num_heads() const { return in_.w_TJ.cols; }
  int64_t head_dim() const { return in_.k_SX.cols; }
  int64_t offset() const { return in_.k_SX.rows - in_.q_TJX.rows; }  // the first query's position

  // scores[t][s - s_begin] = a[t] . b[s] for keys [s_begin, s_end).
  View2<float> tile(View2<const float> a, View2<const float> b, int64_t s_begin, int64_t s_end) {
    tile_.resize(kQueryBlock * kKeyBlock);
    const View2<float> scores(tile_.data(), a.rows, s_end - s_begin, kKeyBlock);
    gemm_serial({a.rows, s_end - s_begin, a.cols}, rows_of(a),
                transpose_of(b.slice_rows(s_begin, s_end)), scores, false, in_.shape.precision);
    return scores;
  }

  // Calls body(tile of a[t] . b[s], first key, visible keys of a row) for every tile of keys.
  template <typename Body>
  void for_each_tile(View2<const float> a, View2<const float> b, int64_t t_begin,
                     const Body& body) {
    const int64_t num_keys = offset() + t_begin + a.rows;
    for (int64_t s = 0; s < num_keys; s += kKeyBlock) {
      const int64_t s_end = std::min(s + kKeyBlock, num_keys);
      const auto visible = [&](int64_t row) {
        return std::clamp<int64_t>(offset() + t_begin + row + 1 - s, 0, s_end - s);
      };
      body(tile(a, b, s, s_end), s, visible);
    }
  }

  void add_dense(int64_t t_begin, int64_t t_end) {
    const int64_t rows = t_end - t_begin, num_keys = offset() + t_end;
    p_.assign(rows * num_keys, 0.0f);
    scores_.assign(rows * num_keys, 0.0f);
    const View2<float> p(p_.data(), rows, num_keys), scores(scores_.data(), rows, num_keys);
    const float share = 1.0f / static_cast<float>(in_.shape.num_heads);
    for (int64_t h = 0; h < in_.shape.num_heads; ++h)
      for_each_tile(head_columns(in_.q, h, in_.shape.qk_dim).slice_rows(t_begin, t_end),
                    head_columns(in_.k, h, in_.shape.qk_dim), t_begin,
                    [&](View2<float> tile, int64_t s, const auto& visible) {
                      for (int64_t i = 0; i < rows; ++i)
                        add_probabilities(tile[i], visible(i), in_.shape.scale,
                                          in_.lse_HT[h][t_begin + i], share, p[i] + s);
                    });
    const auto q_head = [&](int64_t j) {
      return head_columns(in_.q_TJX, j, head_dim()).slice_rows(t_begin, t_end);
    };
    for (int64_t j = 0; j < num_heads(); ++j)
      for_each_tile(q_head(j), in_.k_SX, t_begin,
                    [&](View2<float> z, int64_t s, const auto& visible) {
                      for (int64_t i = 0; i < rows; ++i)
                        add_relu(z[i], visible(i), in_.w_TJ[t_begin + i][j], scores[i] + s);
                    });
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t count = offset() + t_begin + i + 1;
      if (in_.recall_k > 0) recall += recall_row(p[i], count, scores[i], in_.recall_k, best_);
      loss += loss_row(p[i], count, scores[i]);
    }
    for (int64_t j = 0; j < num_heads(); ++j) add_head_gradients(q_head(j), j, t_begin, scores);
  }

  // g_TS is dL/dI. The products z are computed again: kept, they would take J times g's memory.
  void add_head_gradients(View2<const float> q, int64_t j, int64_t t_begin, View2<float> g_TS) {
    const auto dq = head_columns(out_.dq_TJX, j, head_dim()).slice_rows(t_begin, t_begin + q.rows);
    for (int64_t i = 0; i < q.rows; ++i) {
      std::fill_n(dq[i], dq.cols, 0.0f);
      out_.dw_TJ[t_begin + i][j] = 0;
    }
    for_each_tile(q, in_.k_SX, t_begin, [&](View2<float> z, int64_t s, const auto& visible) {
      for (int64_t i = 0; i < q.rows; ++i) {
        const int64_t count = visible(i);
        out_.dw_TJ[t_begin + i][j] +=
            head_gradient(g_TS[i] + s, count, in_.w_TJ[t_begin + i][j], z[i]);
        std::fill(z[i] + count, z[i] + z.cols, 0.0f);
      }
      gemm_serial({q.rows, head_dim(), z.cols}, rows_of(z),
                  rows_of(in_.k_SX.slice_rows(s, s + z.cols)), dq, true, in_.shape.precision);
      gemm_serial({z.cols, head_dim(), q.rows}, transpose_of(z), rows_of(q),
                  dk_.slice_rows(s, s + z.cols), true, in_.shape.precision);
    });
  }

  // How many queries add to keys together: as many as keep z within kMostWeights.
  int64_t selecting_queries(int64_t t_begin, int64_t t_end) const {
    size_t longest = 1;
    for (int64_t t = t_begin; t < t_end; ++t) longest = std::max(longest, in_.keys_T[t].size());
    return std::clamp<int64_t>(kMostWeights / (num_heads() * static_cast<int64_t>(longest)), 1,
                               kSelectingQueries);
  }

  void add_selected(int64_t t_begin, int64_t t_end) {
    queries_.assign(in_.keys_T, t_begin, t_end);
    index_queries_.assign(in_.q_TJX.slice_rows(t_begin, t_end), num_heads(), false);
    const int64_t head_size = (t_end - t_begin) * queries_.weights_stride();
    z_.resize(num_heads() * head_size);
    for (int64_t t = t_begin; t < t_end; ++t)
      add_query(t, z_.data() + (t - t_begin) * queries_.weights_stride(), head_size);
    for (int64_t j = 0; j < num_heads(); ++j)
      queries_.add_weighted(z_.data() + j * head_size, index_queries_.head(j), dk_);
  }

  // One query's loss, dq and dw; z of its keys becomes dL/dz, for each head `head_size` further.
  void add_query(int64_t t, float* z, int64_t head_size) {
    const auto keys = in_.keys_T[t];
    const auto count = std::ssize(keys);
    std::fill_n(out_.dq_TJX[t], out_.dq_TJX.cols, 0.0f);
    std::fill_n(out_.dw_TJ[t], out_.dw_TJ.cols, 0.0f);
    if (count == 0) return;
    scores_.assign(count, 0.0f);
    const float* const p = teacher(t, keys);
    for (int64_t j = 0; j < num_heads(); ++j) {
      gathered_dots(in_.q_TJX[t] + j * head_dim(), in_.k_SX, keys, z + j * head_size);
      add_relu(z + j * head_size, count, in_.w_TJ[t][j], scores_.data());
    }
    loss += loss_row(p, count, scores_.data());
    for (int64_t j = 0; j < num_heads(); ++j) {
      float* const dz = z + j * head_size;
      out_.dw_TJ[t][j] = head_gradient(scores_.data(), count, in_.w_TJ[t][j], dz);
      add_gathered_sum(dz, 1.0f, in_.k_SX, keys, out_.dq_TJX[t] + j * head_dim());
    }
  }

  // p of the query's keys, as given or computed again.
  const float* teacher(int64_t t, std::span<const int32_t> keys) {
    if (in_.probabilities) return in_.probabilities + in_.keys_T.begins_T1[t];
    const auto count = std::ssize(keys);
    p_.assign(count, 0.0f);
    tile_.resize(std::max(count, kQueryBlock * kKeyBlock));
    for (int64_t h = 0; h < in_.shape.num_heads; ++h) {
      gathered_dots(in_.q[t] + h * in_.shape.qk_dim, head_columns(in_.k, h, in_.shape.qk_dim), keys,
                    tile_.data());
      add_probabilities(tile_.data(), count, in_.shape.scale, in_.lse_HT[h][t],
                        1.0f / static_cast<float>(in_.shape.num_heads), p_.data());
    }
    return p_.data();
  }

  const IndexerLossInput& in_;
  const IndexerLossOutput& out_;
  View2<float> dk_;
  QueriesOfKeys queries_;
  HeadRowsF32 index_queries_;  // of those
  std::vector<float> p_, scores_, tile_, z_;
  std::vector<int32_t> best_;
};

void check_shapes(const IndexerLossInput& in, const IndexerLossOutput& out) {
  const int64_t tokens = in.q.rows;
  CHECK_LE(tokens, in.k.rows);
  CHECK_EQ(in.q_TJX.rows, tokens);
  CHECK_EQ(in.k_SX.rows, in.k.rows);
  CHECK_EQ(out.dk_SX.rows, in.k.rows);
  CHECK_EQ(in.q_TJX.cols, in.w_TJ.cols * in.k_SX.cols);
  CHECK_EQ(out.dq_TJX.cols, in.q_TJX.cols);
  CHECK_EQ(out.dw_TJ.cols, in.w_TJ.cols);
  CHECK_EQ(out.dk_SX.cols, in.k_SX.cols);
  if (!in.keys_T.empty()) CHECK_EQ(in.keys_T.num_queries, tokens);
}

}  // namespace

void indexer_loss(const IndexerLossInput& in, IndexerLossOutput& out) {
  check_shapes(in, out);
  if (!in.keys_T.empty() && takes_bf16_dot(in.shape))
    return has_amx() && in.probabilities ? indexer_loss_of_selected_amx(in, out)
                                         : indexer_loss_of_selected_bf16(in, out);
  const int64_t tokens = in.q.rows, num_keys = in.k.rows, dim = in.k_SX.cols;
  const int64_t num_blocks = (tokens + kQueryBlock - 1) / kQueryBlock;
  const int64_t num_parts = std::min(kNumParts, num_blocks);
  std::vector<float> dk(num_parts * num_keys * dim, 0.0f);
  std::vector<double> loss(num_parts), recall(num_parts);
  base::parallel_for(num_parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      BlockLoss block(in, out, {dk.data() + part * num_keys * dim, num_keys, dim});
      for (int64_t i = part; i < num_blocks; i += num_parts)
        block.add(i * kQueryBlock, std::min((i + 1) * kQueryBlock, tokens));
      loss[part] = block.loss;
      recall[part] = block.recall;
    }
  });
  out.loss = out.recall = 0;
  for (int64_t part = 0; part < num_parts; ++part) {
    out.loss += loss[part];
    out.recall += recall[part];
  }
  base::parallel_for(num_keys, 256, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s)
      for (int64_t x = 0; x < dim; ++x) {
        float sum = 0;
        for (int64_t part = 0; part < num_parts; ++part) sum += dk[(part * num_keys + s) * dim + x];
        out.dk_SX[s][x] = sum;
      }
  });
}

namespace reference {

void indexer_loss(const IndexerLossInput& in, IndexerLossOutput& out) {
  const int64_t tokens = in.q.rows, heads = in.shape.num_heads, dim = in.k_SX.cols;
  const int64_t offset = in.k.rows - tokens;
  const auto dot = [](const float* a, const float* b, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * b[i];
    return sum;
  };
  std::vector<double> dk(in.k.rows * dim);
  out.loss = out.recall = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t> keys;
    for (int32_t s = 0; s <= offset + t && in.keys_T.empty(); ++s) keys.push_back(s);
    if (!in.keys_T.empty()) keys.assign(in.keys_T[t].begin(), in.keys_T[t].end());
    std::vector<double> p(keys.size()), scores(keys.size());
    double sum = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
      for (int64_t h = 0; h < heads; ++h)
        p[i] +=
            std::exp(in.shape.scale * dot(in.q[t] + h * in.shape.qk_dim,
                                          in.k[keys[i]] + h * in.shape.qk_dim, in.shape.qk_dim) -
                     in.lse_HT[h][t]) /
            static_cast<double>(heads);
      for (int64_t j = 0; j < in.w_TJ.cols; ++j)
        scores[i] +=
            in.w_TJ[t][j] * std::max(dot(in.q_TJX[t] + j * dim, in.k_SX[keys[i]], dim), 0.0);
      sum += std::exp(scores[i]);
    }
    std::vector<double> dq(in.q_TJX.cols), dw(in.w_TJ.cols);
    for (size_t i = 0; i < keys.size(); ++i) {
      if (p[i] > 0) out.loss += p[i] * (std::log(p[i]) - scores[i] + std::log(sum));
      const double g = std::exp(scores[i]) / sum - p[i];
      for (int64_t j = 0; j < in.w_TJ.cols; ++j) {
        const double z = dot(in.q_TJX[t] + j * dim, in.k_SX[keys[i]], dim);
        if (z <= 0) continue;
        dw[j] += g * z;
        for (int64_t x = 0; x < dim; ++x) {
          dq[j * dim + x] += g * in.w_TJ[t][j] * in.k_SX[keys[i]][x];
          dk[keys[i] * dim + x] += g * in.w_TJ[t][j] * in.q_TJX[t][j * dim + x];
        }
      }
    }
    std::copy(dq.begin(), dq.end(), out.dq_TJX[t]);
    std::copy(dw.begin(), dw.end(), out.dw_TJ[t]);
  }
  for (int64_t s = 0; s < in.k.rows; ++s)
    for (int64_t x = 0; x < dim; ++x) out.dk_SX[s][x] = static_cast<float>(dk[s * dim + x]);
}

}  // namespace reference
}  // namespace fathom::kernels
