#include "kernels/lightning_indexer.h"

#include <algorithm>
#include <limits>

#include "base/parallel.h"
#include "kernels/amx_tile.h"
#include "kernels/bf16_tile.h"
#include "kernels/index_tile_amx.h"
#include "kernels/index_tile_bf16.h"
#include "kernels/tile.h"
#include "kernels/top_k.h"

namespace fathom::kernels {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// Queries that share a page of keys once it is widened: as many as fit into half an L2 cache.
constexpr int64_t kMostQueries = 64;
constexpr int64_t kHeadBytes = 256 << 10;
// A thread's share of one query's keys: below this many, waking another costs more.
constexpr int64_t kFewestKeys = 2048;

int64_t num_heads(const IndexerInput& input) { return input.w_TJ.cols; }

// First key that query t may not see.
int64_t visible_end(const IndexerInput& input, int64_t t) {
  return input.k_SX.num_keys - input.q_TJX.rows + t + 1;
}

struct Range {
  int64_t begin, end;
};

// Page s / 64, and the one behind it where there is one.
IndexPage page_at(const IndexKeyPages& keys, int64_t s) {
  const int64_t next = s + kPageRows;
  return {keys.page_of(s), next < keys.num_keys ? keys.page_of(next) : nullptr};
}

// scores[8 kVectors] of one query: sums over x and then over heads, in order.
template <int kVectors>
FATHOM_INLINE void score_columns(const float* heads, const float* w, int64_t num_heads, int64_t dim,
                                 const float* keys, float* scores) {
  F32x8 total[kVectors];
  for (auto& lanes : total) lanes = F32x8{};
  for (int64_t j = 0; j < num_heads; j += kTileRows, heads += kTileRows * dim) {
    F32x8 dot[kTileRows][kVectors];
    for (auto& row : dot)
      for (auto& lanes : row) lanes = F32x8{};
    multiply_tile<kVectors>(heads, keys, kPageRows, dim, dot);
    for (int64_t i = 0; i < std::min(kTileRows, num_heads - j); ++i)
      for (int64_t v = 0; v < kVectors; ++v)
        total[v] += broadcast(w[j + i]) * max(dot[i][v], F32x8{});
  }
  for (int64_t v = 0; v < kVectors; ++v) store(scores + v * kLanes, total[v]);
}

// Of a page, [X][64], in two tiles of 24 keys and one of 16.
KERNEL void score_page_f32(const float* heads, const float* w, int64_t num_heads, int64_t dim,
                           const float* keys, float* scores) {
  static_assert(2 * kTileCols + 2 * kLanes == kPageRows);
  for (int64_t s = 0; s < 2 * kTileCols; s += kTileCols)
    score_columns<kTileVectors>(heads, w, num_heads, dim, keys + s, scores + s);
  score_columns<2>(heads, w, num_heads, dim, keys + 2 * kTileCols, scores + 2 * kTileCols);
}

// A page of keys for all of a thread's queries, by one kernel after another: for_each_page() calls
// set_queries(), then set_page() for each page and score() for each query. Where a kernel's tiles
// are the processor's, they are laid out meanwhile, for so many rows.
struct NoScope {
  explicit NoScope(int64_t) {}
};
#if FATHOM_HAS_AMX_KERNELS
struct TileScope {
  explicit TileScope(int64_t rows) : shape(kAmxCols, rows) {}
  TileShape shape;
};
#else
using TileScope = NoScope;
#endif

// Takes any values.
class F32Page {
 public:
  using Scope = NoScope;
  static constexpr int64_t tile_rows() { return 0; }

  void set_queries(const IndexerInput& input, std::span<const int64_t> queries) {
    input_ = &input;
    dim_ = input.k_SX.layout.dim;
    query_size_ = round_up(num_heads(input), kTileRows) * dim_;
    heads_.resize(std::ssize(queries) * query_size_);
    for (int64_t i = 0; i < std::ssize(queries); ++i)
      pack_tile_rows(input.q_TJX[queries[i]], num_heads(input), dim_, dim_,
                     heads_.data() + i * query_size_);
    keys_.resize(dim_ * kPageRows);
  }

  void set_page(int64_t s) {
    widen_index_page(input_->k_SX.layout, input_->k_SX.page_of(s), keys_.data());
  }

  // Of the i-th query, which is query t; they lie there or in `scratch`.
  const float* score(int64_t i, int64_t t, float (&scratch)[kPageRows]) const {
    score_page_f32(heads_.data() + i * query_size_, input_->w_TJ[t], num_heads(*input_), dim_,
                   keys_.data(), scratch);
    return scratch;
  }

 private:
  const IndexerInput* input_ = nullptr;
  int64_t dim_ = 0, query_size_ = 0;
  std::vector<float> heads_, keys_;
};

// For values that bf16 holds exactly.
class BF16Page {
 public:
  using Scope = NoScope;
  static constexpr int64_t tile_rows() { return 0; }

  void set_queries(const IndexerInput& input, std::span<const int64_t> queries) {
    input_ = &input;
    const int64_t dim = input.k_SX.layout.dim;
    query_size_ = paired_heads_size(num_heads(input), dim);
    heads_ = heads_buffer_.reserve<uint32_t>(std::ssize(queries) * query_size_);
    for (int64_t i = 0; i < std::ssize(queries); ++i)
      pair_heads(input.q_TJX[queries[i]], num_heads(input), dim, heads_ + i * query_size_);
    buffer_ = keys_buffer_.reserve<uint32_t>(paired_keys_size(dim));
    reads_page_ = std::ssize(queries) == 1 && num_heads(input) <= kFewIndexHeads;
  }

  void set_page(int64_t s) {
    page_ = page_at(input_->k_SX, s);
    if (!reads_page_) keys_ = pair_keys(input_->k_SX.layout, page_, buffer_);
  }

  const float* score(int64_t i, int64_t t, float (&scratch)[kPageRows]) const {
    const PackedQuery query{heads_ + i * query_size_, input_->w_TJ[t], num_heads(*input_),
                            input_->k_SX.layout.dim};
    if (reads_page_)
      score_page(query, input_->k_SX.layout, page_, scratch);
    else
      score_paired_keys(query, keys_, scratch);
    return scratch;
  }

 private:
  const IndexerInput* input_ = nullptr;
  int64_t query_size_ = 0;
  bool reads_page_ = false;
  IndexPage page_{};
  PairedKeys keys_{};
  LineBuffer heads_buffer_, keys_buffer_;
  uint32_t *heads_ = nullptr, *buffer_ = nullptr;
};

// The same on AMX, where queries with few heads share tiles.
class AmxPage {
 public:
  using Scope = TileScope;
  int64_t tile_rows() const { return tile_rows_of_queries(std::ssize(w_TJ_), num_heads(*input_)); }

  void set_queries(const IndexerInput& input, std::span<const int64_t> queries) {
    input_ = &input;
    const int64_t dim = input.k_SX.layout.dim, count = std::ssize(queries);
    const int64_t words = tiled_heads_size(count, num_heads(input), dim);
    heads_ = heads_buffer_.reserve<uint32_t>(words);
    std::fill_n(heads_, words, 0u);
    w_TJ_.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      tile_heads(input.q_TJX[queries[i]], num_heads(input), dim, i, heads_);
      w_TJ_[i] = input.w_TJ[queries[i]];
    }
    buffer_ = keys_buffer_.reserve<uint32_t>(tiled_keys_size(dim));
    scores_ = scores_buffer_.reserve<float>(count * kPageRows);
  }

  void set_page(int64_t s) {
    const IndexKeyLayout& layout = input_->k_SX.layout;
    const PairedKeys keys = tile_keys(layout, page_at(input_->k_SX, s), buffer_);
    score_tiled_keys({heads_, w_TJ_.data(), std::ssize(w_TJ_), num_heads(*input_), layout.dim},
                     keys, scores_);
  }

  const float* score(int64_t i, int64_t, float (&)[kPageRows]) const {
    return scores_ + i * kPageRows;
  }

 private:
  const IndexerInput* input_ = nullptr;
  std::vector<const float*> w_TJ_;
  LineBuffer heads_buffer_, keys_buffer_, scores_buffer_;
  uint32_t *heads_ = nullptr, *buffer_ = nullptr;
  float* scores_ = nullptr;
};

// Calls take(t, first key, its visible scores) for queries (ascending) x keys, page by page, keys
// ascending from a page's first on.
template <typename Page, typename Take>
void for_each_page(const IndexerInput& input, std::span<const int64_t> queries, Range keys,
                   const Take& take) {
  if (queries.empty()) return;
  static thread_local Page page;
  page.set_queries(input, queries);
  [[maybe_unused]] const typename Page::Scope scope(page.tile_rows());
  const int64_t end = std::min(keys.end, visible_end(input, queries.back()));
  for (int64_t s = keys.begin; s < end; s += kPageRows) {
    page.set_page(s);
    for (int64_t i = 0; i < std::ssize(queries); ++i) {
      const int64_t visible = std::min({kPageRows, end - s, visible_end(input, queries[i]) - s});
      if (visible <= 0) continue;
      float scratch[kPageRows];
      const float* const scores = page.score(i, queries[i], scratch);
      take(queries[i], s, std::span<const float>(scores, visible));
    }
  }
}

// The same with the kernel that each query's own values ask for.
template <typename Take>
void for_each_score(const IndexerInput& input, Range queries, Range keys, const Take& take) {
  const bool can_pair = can_pair_index_keys(input.k_SX.layout);
  std::vector<int64_t> paired, others;
  for (int64_t t = queries.begin; t < queries.end; ++t) {
    const bool is_paired = can_pair && is_exact_in_bf16(input.q_TJX[t], input.q_TJX.cols);
    (is_paired ? paired : others).push_back(t);
  }
  if (has_amx())
    for_each_page<AmxPage>(input, paired, keys, take);
  else
    for_each_page<BF16Page>(input, paired, keys, take);
  for_each_page<F32Page>(input, others, keys, take);
}

int64_t queries_at_once(const IndexerInput& input) {
  const int64_t bytes = round_up(num_heads(input), kTileRows) * input.k_SX.layout.dim * 4;
  return std::clamp<int64_t>(kHeadBytes / bytes, 1, kMostQueries);
}

void check_shapes(const IndexerInput& input) {
  CHECK_EQ(input.q_TJX.cols, input.w_TJ.cols * input.k_SX.layout.dim);
  CHECK_EQ(input.q_TJX.rows, input.w_TJ.rows);
  CHECK_LE(input.q_TJX.rows, input.k_SX.num_keys);
}

// Few queries: each thread selects from its own part of the keys, then from all parts' selections.
void select_in_parts(const IndexerInput& input, Range queries, int64_t k, int64_t num_parts,
                     std::span<std::vector<int32_t>> keys_T) {
  const int64_t num_queries = queries.end - queries.begin;
  const int64_t num_pages = ceil_div(input.k_SX.num_keys, kPageRows);
  std::vector<TopKStream> streams(num_parts * num_queries);
  base::parallel_for(num_parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      TopKStream* const mine = streams.data() + part * num_queries;
      for (int64_t i = 0; i < num_queries; ++i) mine[i].reset(k);
      const Range keys{num_pages * part / num_parts * kPageRows,
                       num_pages * (part + 1) / num_parts * kPageRows};
      for_each_score(input, queries, keys,
                     [&](int64_t t, int64_t s, std::span<const float> scores) {
                       mine[t - queries.begin].add(scores, static_cast<int32_t>(s));
                     });
      // Here, where all threads work, and not when one of them merges the parts.
      for (int64_t i = 0; i < num_queries; ++i) mine[i].shrink();
    }
  });
  for (int64_t i = 0; i < num_queries; ++i) {
    for (int64_t part = 1; part < num_parts; ++part)
      streams[i].add(streams[part * num_queries + i]);
    streams[i].finish(keys_T[queries.begin + i]);
  }
}

}  // namespace

void index_scores(const IndexerInput& input, View2<float> scores_TS) {
  check_shapes(input);
  CHECK_EQ(scores_TS.rows, input.q_TJX.rows);
  CHECK_EQ(scores_TS.cols, input.k_SX.num_keys);
  const int64_t at_once = queries_at_once(input);
  base::parallel_for(input.q_TJX.rows, at_once, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      std::fill(scores_TS[t], scores_TS[t] + scores_TS.cols, kMinusInfinity);
    for (int64_t t = begin; t < end; t += at_once)
      for_each_score(input, {t, std::min(t + at_once, end)}, {0, input.k_SX.num_keys},
                     [&](int64_t query, int64_t s, std::span<const float> scores) {
                       std::copy(scores.begin(), scores.end(), scores_TS[query] + s);
                     });
  });
}

void select_keys(const IndexerInput& input, int64_t k, std::span<std::vector<int32_t>> keys_T) {
  check_shapes(input);
  CHECK_EQ(static_cast<int64_t>(keys_T.size()), input.q_TJX.rows);
  const int64_t at_once = queries_at_once(input);
  const int64_t num_tiles = (input.q_TJX.rows + at_once - 1) / at_once;
  const int64_t num_parts =
      std::clamp<int64_t>(input.k_SX.num_keys / kFewestKeys, 1, base::num_threads());
  base::parallel_for(num_tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const Range queries{tile * at_once, std::min((tile + 1) * at_once, input.q_TJX.rows)};
      select_in_parts(input, queries, k, num_tiles < base::num_threads() ? num_parts : 1, keys_T);
    }
  });
}

namespace reference {

void index_scores(const IndexerInput& input, View2<float> scores_TS) {
  check_shapes(input);
  const int64_t dim = input.k_SX.layout.dim;
  std::vector<float> key(dim);
  for (int64_t s = 0; s < input.k_SX.num_keys; ++s) {
    widen_index_key(input.k_SX.layout, input.k_SX.page_of(s), s % kPageRows, key.data());
    for (int64_t t = 0; t < input.q_TJX.rows; ++t) {
      double score = 0;
      for (int64_t j = 0; j < input.w_TJ.cols; ++j) {
        double dot = 0;
        for (int64_t x = 0; x < dim; ++x)
          dot += static_cast<double>(input.q_TJX[t][j * dim + x]) * key[x];
        score += input.w_TJ[t][j] * std::max(dot, 0.0);
      }
      scores_TS[t][s] = s < visible_end(input, t) ? static_cast<float>(score) : kMinusInfinity;
    }
  }
}

}  // namespace reference
}  // namespace fathom::kernels
