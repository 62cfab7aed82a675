#include "kernels/lightning_indexer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/parallel.h"
#include "kernels/simd.h"

namespace fathom::kernels {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

template <int kHeads>
FATHOM_INLINE float head_scores(const float* q, const float* w, const float* key, int64_t dim) {
  F32x8 sum[kHeads];
  for (auto& lane_sums : sum) lane_sums = F32x8{};
  int64_t x = 0;
  for (; x + kLanes <= dim; x += kLanes) {
    const F32x8 k = load(key + x);
    for (int j = 0; j < kHeads; ++j) sum[j] += load(q + j * dim + x) * k;
  }
  float score = 0;
  for (int j = 0; j < kHeads; ++j) {
    if (x < dim) sum[j] += load_partial(q + j * dim + x, dim - x) * load_partial(key + x, dim - x);
    score += w[j] * std::max(horizontal_sum(sum[j]), 0.0f);
  }
  return score;
}

KERNEL void score_row(const float* q, const float* w, int64_t num_heads, View2<const float> k_SX,
                      const float* k_scale, int64_t num_keys, float* scores) {
  const int64_t dim = k_SX.cols;
  for (int64_t s = 0; s < num_keys; ++s) {
    float score = 0;
    int64_t j = 0;
    for (; j + 4 <= num_heads; j += 4) score += head_scores<4>(q + j * dim, w + j, k_SX[s], dim);
    for (; j < num_heads; ++j) score += head_scores<1>(q + j * dim, w + j, k_SX[s], dim);
    scores[s] = k_scale ? k_scale[s] * score : score;
  }
}

void check_shapes(const IndexScores& io) {
  CHECK_EQ(io.q_TJX.cols, io.w_TJ.cols * io.k_SX.cols);
  CHECK_EQ(io.q_TJX.rows, io.w_TJ.rows);
  CHECK_EQ(io.scores_TS.rows, io.q_TJX.rows);
  CHECK_EQ(io.scores_TS.cols, io.k_SX.rows);
  CHECK_LE(io.q_TJX.rows, io.k_SX.rows);
}

}  // namespace

void index_scores(const IndexScores& io) {
  check_shapes(io);
  const int64_t offset = io.k_SX.rows - io.q_TJX.rows;
  base::parallel_for(io.q_TJX.rows, 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t num_keys = offset + t + 1;
      score_row(io.q_TJX[t], io.w_TJ[t], io.w_TJ.cols, io.k_SX, io.k_scale_S, num_keys,
                io.scores_TS[t]);
      std::fill(io.scores_TS[t] + num_keys, io.scores_TS[t] + io.scores_TS.cols, kMinusInfinity);
    }
  });
}

void top_k(std::span<const float> scores, int64_t k, std::vector<int32_t>& indices) {
  const auto size = static_cast<int64_t>(scores.size());
  indices.resize(size);
  std::iota(indices.begin(), indices.end(), 0);
  if (k >= size) return;
  const auto value = [&](int32_t i) { return std::isnan(scores[i]) ? kMinusInfinity : scores[i]; };
  const auto is_better = [&](int32_t a, int32_t b) {
    return value(a) != value(b) ? value(a) > value(b) : a < b;
  };
  std::nth_element(indices.begin(), indices.begin() + k, indices.end(), is_better);
  indices.resize(k);
  std::sort(indices.begin(), indices.end());
}

namespace reference {

void index_scores(const IndexScores& io) {
  check_shapes(io);
  const int64_t dim = io.k_SX.cols, offset = io.k_SX.rows - io.q_TJX.rows;
  for (int64_t t = 0; t < io.q_TJX.rows; ++t) {
    for (int64_t s = 0; s < io.k_SX.rows; ++s) {
      double score = 0;
      for (int64_t j = 0; j < io.w_TJ.cols; ++j) {
        double dot = 0;
        for (int64_t x = 0; x < dim; ++x)
          dot += static_cast<double>(io.q_TJX[t][j * dim + x]) * io.k_SX[s][x];
        score += io.w_TJ[t][j] * std::max(dot, 0.0);
      }
      if (io.k_scale_S) score *= io.k_scale_S[s];
      io.scores_TS[t][s] = s <= offset + t ? static_cast<float>(score) : kMinusInfinity;
    }
  }
}

}  // namespace reference
}  // namespace fathom::kernels
