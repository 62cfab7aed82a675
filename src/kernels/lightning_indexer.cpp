#include "kernels/lightning_indexer.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <vector>

#include "base/parallel.h"
#include "kernels/simd.h"

namespace fathom::kernels {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// A tile: 4 rows (heads of one query) by 24 keys, twelve sums in registers, keys in the lanes.
constexpr int64_t kRows = 4;
constexpr int64_t kKeyVectors = 3;
constexpr int64_t kKeys = kKeyVectors * kLanes;
// Queries that share a tile of keys once it is transposed; 16 of nano's are 64 KiB of packed heads.
constexpr int64_t kQueries = 16;

int64_t padded(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// q[row][x] of one query as [row / 4][x][4], heads beyond num_heads zero.
void pack_heads(const float* q, int64_t num_heads, int64_t dim, float* out) {
  for (int64_t j = 0; j < padded(num_heads, kRows); ++j)
    for (int64_t x = 0; x < dim; ++x)
      out[j / kRows * kRows * dim + x * kRows + j % kRows] = j < num_heads ? q[j * dim + x] : 0.0f;
}

FATHOM_INLINE void transpose(F32x8 (&row)[kLanes]) {
  F32x8 pair[kLanes], quad[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pair[i] = __builtin_shufflevector(row[i], row[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
    pair[i + 1] = __builtin_shufflevector(row[i], row[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int i = 0; i < kLanes; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const F32x8 a = pair[i + j], b = pair[i + j + 2];
      quad[i + j] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
      quad[i + j + 2] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    row[i] = __builtin_shufflevector(quad[i], quad[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    row[i + 4] = __builtin_shufflevector(quad[i], quad[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// Keys [0, keys.rows) as [x][24], the missing ones zero.
KERNEL void pack_keys(View2<const float> keys, float* out) {
  const int64_t dim = keys.cols;
  for (int64_t s = 0; s < kKeys; s += kLanes) {
    int64_t x = 0;
    for (; s + kLanes <= keys.rows && x + kLanes <= dim; x += kLanes) {
      F32x8 block[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) block[i] = load(keys[s + i] + x);
      transpose(block);
      for (int64_t i = 0; i < kLanes; ++i) store(out + (x + i) * kKeys + s, block[i]);
    }
    for (; x < dim; ++x)
      for (int64_t i = s; i < s + kLanes; ++i)
        out[x * kKeys + i] = i < keys.rows ? keys[i][x] : 0.0f;
  }
}

// scores[24] of one query: sum_j w[j] relu(q[j] . k), sums over x and then over j in order.
KERNEL void score_tile(const float* heads, const float* w, int64_t num_heads, int64_t dim,
                       const float* keys, float* scores) {
  F32x8 total[kKeyVectors];
  for (auto& lanes : total) lanes = F32x8{};
  for (int64_t j = 0; j < num_heads; j += kRows, heads += kRows * dim) {
    F32x8 dot[kRows][kKeyVectors];
    for (auto& row : dot)
      for (auto& lanes : row) lanes = F32x8{};
    for (int64_t x = 0; x < dim; ++x) {
      F32x8 key[kKeyVectors];
      for (int64_t v = 0; v < kKeyVectors; ++v) key[v] = load(keys + x * kKeys + v * kLanes);
      for (int64_t i = 0; i < kRows; ++i) {
        const F32x8 value = broadcast(heads[x * kRows + i]);
        for (int64_t v = 0; v < kKeyVectors; ++v) dot[i][v] += value * key[v];
      }
    }
    for (int64_t i = 0; i < std::min(kRows, num_heads - j); ++i)
      for (int64_t v = 0; v < kKeyVectors; ++v)
        total[v] += broadcast(w[j + i]) * max(dot[i][v], F32x8{});
  }
  for (int64_t v = 0; v < kKeyVectors; ++v) store(scores + v * kLanes, total[v]);
}

// Scores of queries [begin, end), one tile of keys after another.
void score_queries(const IndexScores& io, int64_t begin, int64_t end) {
  const int64_t num_heads = io.w_TJ.cols, dim = io.k_SX.cols;
  const int64_t offset = io.k_SX.rows - io.q_TJX.rows;
  const int64_t query_size = padded(num_heads, kRows) * dim;
  static thread_local std::vector<float> heads, keys;
  heads.resize((end - begin) * query_size);
  keys.resize(dim * kKeys);
  for (int64_t t = begin; t < end; ++t)
    pack_heads(io.q_TJX[t], num_heads, dim, heads.data() + (t - begin) * query_size);
  for (int64_t s = 0; s < offset + end; s += kKeys) {
    const int64_t count = std::min(kKeys, offset + end - s);
    pack_keys(io.k_SX.slice_rows(s, s + count), keys.data());
    for (int64_t t = std::max(begin, s - offset); t < end; ++t) {
      float scores[kKeys];
      score_tile(heads.data() + (t - begin) * query_size, io.w_TJ[t], num_heads, dim, keys.data(),
                 scores);
      const int64_t visible = std::min(count, offset + t + 1 - s);
      for (int64_t i = 0; i < visible; ++i)
        io.scores_TS[t][s + i] = io.k_scale_S ? io.k_scale_S[s + i] * scores[i] : scores[i];
    }
  }
  for (int64_t t = begin; t < end; ++t)
    std::fill(io.scores_TS[t] + offset + t + 1, io.scores_TS[t] + io.scores_TS.cols,
              kMinusInfinity);
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
  base::parallel_for(io.q_TJX.rows, kQueries, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t += kQueries)
      score_queries(io, t, std::min(t + kQueries, end));
  });
}

namespace {

// Unsigned integers in the order of the floats: -0 equals 0, NaN equals -inf.
FATHOM_INLINE uint32_t ordered_bits(float score) {
  const auto bits = std::bit_cast<uint32_t>(score == score ? score + 0.0f : kMinusInfinity);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

// The three digits that values are selected by, 11 + 11 + 10 bits.
struct Digit {
  int shift;
  uint32_t mask;
  uint32_t of(uint32_t bits) const { return bits >> shift & mask; }
};
constexpr Digit kDigits[] = {{21, 2047}, {10, 2047}, {0, 1023}};

}  // namespace

void top_k(std::span<const float> scores, int64_t k, std::vector<int32_t>& indices) {
  const auto size = static_cast<int64_t>(scores.size());
  indices.resize(std::min(k, size));
  if (k >= size) {
    std::iota(indices.begin(), indices.end(), 0);
    return;
  }
  if (k <= 0) return;
  static thread_local std::vector<uint32_t> ordered, candidates;
  ordered.resize(size);
  for (int64_t i = 0; i < size; ++i) ordered[i] = ordered_bits(scores[i]);
  // Digit by digit from the top: which bin holds the k-th greatest; the next digit looks at that
  // bin's values only. `wanted` of the values equal to `threshold` are in the end selected.
  candidates.assign(ordered.begin(), ordered.end());
  int64_t wanted = k;
  uint32_t threshold = 0;
  for (const Digit& digit : kDigits) {
    uint32_t count[2048] = {};
    for (const uint32_t bits : candidates) ++count[digit.of(bits)];
    uint32_t bin = digit.mask;
    while (count[bin] < wanted) wanted -= count[bin--];
    std::erase_if(candidates, [&](uint32_t bits) { return digit.of(bits) != bin; });
    threshold = candidates.front();
    if (static_cast<int64_t>(candidates.size()) == wanted) {
      threshold = *std::min_element(candidates.begin(), candidates.end());
      wanted = std::count(candidates.begin(), candidates.end(), threshold);
      break;
    }
  }
  int64_t n = 0;
  for (int64_t i = 0; i < size && n < k; ++i) {
    const bool is_tie = ordered[i] == threshold;
    indices[n] = static_cast<int32_t>(i);
    n += ordered[i] > threshold || (is_tie && wanted > 0);
    wanted -= is_tie;
  }
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
