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
// Queries that share a tile of keys once it is widened: as many as fit into half an L2 cache.
constexpr int64_t kMostQueries = 64;
constexpr int64_t kHeadBytes = 256 << 10;
// A thread's share of one query's keys: below this many, waking another costs more.
constexpr int64_t kFewestKeys = 2048;
// Threads' shares are whole tiles of either kind.
constexpr int64_t kShareKeys = 96;
static_assert(kShareKeys % (4 * kTileCols) == 0 && kShareKeys % kIndexTileKeys == 0);

int64_t num_heads(const IndexerInput& input) { return input.w_TJ.cols; }

// First key that query t may not see.
int64_t visible_end(const IndexerInput& input, int64_t t) {
  return input.k_SX.num_rows - input.q_TJX.rows + t + 1;
}

KERNEL void pack_keys(const float* rows, int64_t num_rows, int64_t dim, float* out) {
  pack_tile_cols(rows, num_rows, dim, dim, out);
}

// scores[24] of one query: sums over x and then over heads, in order.
KERNEL void score_tile(const float* heads, const float* w, int64_t num_heads, int64_t dim,
                       const float* keys, float* scores) {
  F32x8 total[kTileVectors];
  for (auto& lanes : total) lanes = F32x8{};
  for (int64_t j = 0; j < num_heads; j += kTileRows, heads += kTileRows * dim) {
    F32x8 dot[kTileRows][kTileVectors];
    for (auto& row : dot)
      for (auto& lanes : row) lanes = F32x8{};
    multiply_tile<kTileVectors>(heads, keys, kTileCols, dim, dot);
    for (int64_t i = 0; i < std::min(kTileRows, num_heads - j); ++i)
      for (int64_t v = 0; v < kTileVectors; ++v)
        total[v] += broadcast(w[j + i]) * max(dot[i][v], F32x8{});
  }
  for (int64_t v = 0; v < kTileVectors; ++v) store(scores + v * kLanes, total[v]);
}

struct Range {
  int64_t begin, end;
};

// What a thread holds while it uses a form of tile: nothing, but on AMX its tiles' layout for so
// many columns.
struct NoScope {
  explicit NoScope(int64_t) {}
};
#if FATHOM_HAS_AMX_KERNELS
using TileScope = TileShape;
#else
using TileScope = NoScope;
#endif

// A tile of keys for all of a thread's queries. F32Tile takes any values. Several register tiles,
// since a query takes its scores of many keys faster than those of few.
class F32Tile {
 public:
  using Scope = NoScope;
  static constexpr int64_t kKeys = 4 * kTileCols;
  static constexpr int64_t columns() { return 0; }

  void set_queries(const IndexerInput& input, std::span<const int64_t> queries) {
    input_ = &input;
    dim_ = input.k_SX.layout.dim();
    query_size_ = round_up(num_heads(input), kTileRows) * dim_;
    heads_.resize(std::ssize(queries) * query_size_);
    for (int64_t i = 0; i < std::ssize(queries); ++i)
      pack_tile_rows(input.q_TJX[queries[i]], num_heads(input), dim_, dim_,
                     heads_.data() + i * query_size_);
    rows_.resize(kKeys * dim_);
    keys_.resize(kKeys * dim_);
  }

  void set_keys(int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
      widen_row(input_->k_SX.layout, input_->k_SX[first + i], rows_.data() + i * dim_);
    for (int64_t i = 0; i < count; i += kTileCols)
      pack_keys(rows_.data() + i * dim_, std::min(kTileCols, count - i), dim_,
                keys_.data() + i * dim_);
    count_ = count;
  }

  // Of the i-th query, which is query t; they lie there or in `scratch`.
  const float* score(int64_t i, int64_t t, float (&scratch)[kKeys]) const {
    for (int64_t s = 0; s < count_; s += kTileCols)
      score_tile(heads_.data() + i * query_size_, input_->w_TJ[t], num_heads(*input_), dim_,
                 keys_.data() + s * dim_, scratch + s);
    return scratch;
  }

 private:
  const IndexerInput* input_ = nullptr;
  int64_t dim_ = 0, query_size_ = 0, count_ = 0;
  std::vector<float> heads_, rows_, keys_;
};

// For values that bf16 holds exactly: how keys and heads are laid out, for many heads and for few.
struct Pairs {
  using Word = uint32_t;
  using Scope = NoScope;
  static constexpr auto heads_size = paired_heads_size;
  static constexpr auto keys_size = paired_keys_size;
  static constexpr auto pack_heads = pair_heads;
  static constexpr auto load_keys = pair_keys;
  static constexpr auto score = score_paired_tile;
};
struct AmxTiles {
  using Word = uint32_t;
  using Scope = TileScope;
  static constexpr auto heads_size = tiled_heads_size;
  static constexpr auto keys_size = paired_keys_size;
  static constexpr auto pack_heads = tile_heads;
  static constexpr auto load_keys = pair_keys;
  static constexpr auto score = score_amx_tile;
};
struct Octets {
  using Word = uint16_t;
  using Scope = NoScope;
  static constexpr auto heads_size = few_heads_size;
  static constexpr auto keys_size = octet_keys_size;
  static constexpr auto pack_heads = round_heads;
  static constexpr auto load_keys = load_octet_keys;
  static constexpr auto score = score_octet_tile;
};

template <typename Form>
class BF16Tile {
 public:
  using Scope = typename Form::Scope;
  static constexpr int64_t kKeys = kIndexTileKeys;
  static constexpr int64_t columns() { return kAmxCols; }

  void set_queries(const IndexerInput& input, std::span<const int64_t> queries) {
    input_ = &input;
    dim_ = input.k_SX.layout.dim();
    query_size_ = Form::heads_size(num_heads(input), dim_);
    heads_ = heads_buffer_.template reserve<Word>(std::ssize(queries) * query_size_);
    for (int64_t i = 0; i < std::ssize(queries); ++i)
      Form::pack_heads(input.q_TJX[queries[i]], num_heads(input), dim_, heads_ + i * query_size_);
    keys_ = keys_buffer_.template reserve<Word>(Form::keys_size(dim_));
  }

  void set_keys(int64_t first, int64_t count) {
    Form::load_keys(input_->k_SX, first, count, keys_, scales_);
  }

  const float* score(int64_t i, int64_t t, float (&scratch)[kKeys]) const {
    Form::score({heads_ + i * query_size_, input_->w_TJ[t], num_heads(*input_), dim_}, keys_,
                scales_, scratch);
    return scratch;
  }

 private:
  using Word = typename Form::Word;

  const IndexerInput* input_ = nullptr;
  int64_t dim_ = 0, query_size_ = 0;
  LineBuffer heads_buffer_, keys_buffer_;
  Word *heads_ = nullptr, *keys_ = nullptr;
  float scales_[kKeys] = {};
};

// For few heads on AMX: all queries at once, four to a tile. Four times 32 keys, since a query
// takes its scores of many keys faster than those of few.
class ColumnTile {
 public:
  using Scope = TileScope;
  static constexpr int64_t kKeys = 4 * kIndexTileKeys;
  int64_t columns() const { return score_columns_width(num_queries_); }

  void set_queries(const IndexerInput& input, std::span<const int64_t> queries) {
    input_ = &input;
    dim_ = input.k_SX.layout.dim();
    num_queries_ = std::ssize(queries);
    const int64_t words = column_heads_size(num_queries_, dim_);
    const int64_t weights = column_weights_size(num_queries_);
    heads_ = heads_buffer_.reserve<uint32_t>(words);
    weights_ = weights_buffer_.reserve<float>(weights);
    keys_ = keys_buffer_.reserve<uint16_t>(key_rows_size(dim_));
    scores_ = scores_buffer_.reserve<float>(round_up(num_queries_, kColumnQueries) * kKeys);
    std::fill_n(heads_, words, 0u);
    std::fill_n(weights_, weights, 0.0f);
    for (int64_t i = 0; i < num_queries_; ++i)
      set_column_heads(input.q_TJX[queries[i]],
                       {input.w_TJ[queries[i]], static_cast<size_t>(num_heads(input))}, dim_, i,
                       heads_, weights_);
  }

  void set_keys(int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; i += kIndexTileKeys) {
      const IndexKeyRows rows = load_key_rows(input_->k_SX, first + i,
                                              std::min(kIndexTileKeys, count - i), keys_, scales_);
      score_columns(heads_, weights_, num_queries_, dim_, rows, scales_, kKeys, scores_ + i);
    }
  }

  const float* score(int64_t i, int64_t, float (&)[kKeys]) const { return scores_ + i * kKeys; }

 private:
  const IndexerInput* input_ = nullptr;
  int64_t dim_ = 0, num_queries_ = 0;
  LineBuffer heads_buffer_, weights_buffer_, keys_buffer_, scores_buffer_;
  uint32_t* heads_ = nullptr;
  uint16_t* keys_ = nullptr;
  float *weights_ = nullptr, *scores_ = nullptr;
  float scales_[kIndexTileKeys] = {};
};

// Calls take(t, first key, its visible scores) for queries (ascending) x keys, tile by tile, keys
// ascending.
template <typename Tile, typename Take>
void for_each_tile(const IndexerInput& input, std::span<const int64_t> queries, Range keys,
                   const Take& take) {
  if (queries.empty()) return;
  static thread_local Tile tile;
  tile.set_queries(input, queries);
  [[maybe_unused]] const typename Tile::Scope scope(tile.columns());
  const int64_t end = std::min(keys.end, visible_end(input, queries.back()));
  for (int64_t s = keys.begin; s < end; s += Tile::kKeys) {
    const int64_t count = std::min(Tile::kKeys, end - s);
    tile.set_keys(s, count);
    for (int64_t i = 0; i < std::ssize(queries); ++i) {
      const int64_t visible = std::min(count, visible_end(input, queries[i]) - s);
      if (visible <= 0) continue;
      float scratch[Tile::kKeys];
      const float* const scores = tile.score(i, queries[i], scratch);
      take(queries[i], s, std::span<const float>(scores, visible));
    }
  }
}

// The same with the tile that each query's own values ask for.
template <typename Take>
void for_each_score(const IndexerInput& input, Range queries, Range keys, const Take& take) {
  const bool can_pair = can_pair_index_keys(input.k_SX.layout);
  std::vector<int64_t> paired, others;
  for (int64_t t = queries.begin; t < queries.end; ++t) {
    const bool is_paired = can_pair && is_exact_in_bf16(input.q_TJX[t], input.q_TJX.cols);
    (is_paired ? paired : others).push_back(t);
  }
  if (num_heads(input) <= kColumnHeads && has_amx())
    for_each_tile<ColumnTile>(input, paired, keys, take);
  else if (num_heads(input) <= kFewIndexHeads)
    for_each_tile<BF16Tile<Octets>>(input, paired, keys, take);
  else if (has_amx())
    for_each_tile<BF16Tile<AmxTiles>>(input, paired, keys, take);
  else
    for_each_tile<BF16Tile<Pairs>>(input, paired, keys, take);
  for_each_tile<F32Tile>(input, others, keys, take);
}

int64_t queries_at_once(const IndexerInput& input) {
  const int64_t bytes = round_up(num_heads(input), kTileRows) * input.k_SX.layout.dim() * 4;
  return std::clamp<int64_t>(kHeadBytes / bytes, 1, kMostQueries);
}

void check_shapes(const IndexerInput& input) {
  CHECK_EQ(input.q_TJX.cols, input.w_TJ.cols * input.k_SX.layout.dim());
  CHECK_EQ(input.q_TJX.rows, input.w_TJ.rows);
  CHECK_LE(input.q_TJX.rows, input.k_SX.num_rows);
}

// Few queries: each thread selects from its own part of the keys, then from all parts' selections.
void select_in_parts(const IndexerInput& input, Range queries, int64_t k, int64_t num_parts,
                     std::span<std::vector<int32_t>> keys_T) {
  const int64_t num_queries = queries.end - queries.begin;
  const int64_t shares = (input.k_SX.num_rows + kShareKeys - 1) / kShareKeys;
  std::vector<TopKStream> streams(num_parts * num_queries);
  base::parallel_for(num_parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      TopKStream* const mine = streams.data() + part * num_queries;
      for (int64_t i = 0; i < num_queries; ++i) mine[i].reset(k);
      const Range keys{shares * part / num_parts * kShareKeys,
                       shares * (part + 1) / num_parts * kShareKeys};
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
  CHECK_EQ(scores_TS.cols, input.k_SX.num_rows);
  const int64_t at_once = queries_at_once(input);
  base::parallel_for(input.q_TJX.rows, at_once, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      std::fill(scores_TS[t], scores_TS[t] + scores_TS.cols, kMinusInfinity);
    for (int64_t t = begin; t < end; t += at_once)
      for_each_score(input, {t, std::min(t + at_once, end)}, {0, input.k_SX.num_rows},
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
      std::clamp<int64_t>(input.k_SX.num_rows / kFewestKeys, 1, base::num_threads());
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
  const int64_t dim = input.k_SX.layout.dim();
  std::vector<float> key(dim);
  for (int64_t s = 0; s < input.k_SX.num_rows; ++s) {
    widen_row(input.k_SX.layout, input.k_SX[s], key.data());
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
