#include "kernels/sparse_mla.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/parallel.h"
#include "kernels/bf16_tile.h"
#include "kernels/softmax_row.h"
#include "kernels/sparse_mla_block.h"
#include "kernels/tile.h"

namespace fathom::kernels {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// Keys whose rows are widened together: 216 KiB of f32 at V3.2's shape, in an L2 cache.
constexpr int64_t kBlock = 96;
static_assert(kBlock % kTileCols == 0);
// A part costs a merge of all heads' sums; 512 keys make that 1% of it.
constexpr int64_t kFewestPartKeys = 512;
constexpr int64_t kMostParts = 16;

struct Scratch {
  std::vector<float> rows;     // [96][D]
  std::vector<float> columns;  // [4 tiles][D][24]
  std::vector<float> p;        // [H / 4][96][4]
};

KERNEL void pack_columns(const float* rows, int64_t num_rows, int64_t dim, float* out) {
  for (int64_t s = 0; s < num_rows; s += kTileCols)
    pack_tile_cols(rows + s * dim, std::min(kTileCols, num_rows - s), dim, dim, out + s * dim);
}

// scores[4][96] of four heads.
KERNEL void score_heads(const float* heads, const float* columns, int64_t num_keys, int64_t dim,
                        float scale, float* scores) {
  for (int64_t s = 0; s < num_keys; s += kTileCols) {
    F32x8 dot[kTileRows][kTileVectors];
    for (auto& row : dot)
      for (auto& lanes : row) lanes = F32x8{};
    multiply_tile<kTileVectors>(heads, columns + s * dim, kTileCols, dim, dot);
    for (int64_t i = 0; i < kTileRows; ++i)
      for (int64_t v = 0; v < kTileVectors; ++v)
        store(scores + i * kBlock + s + v * kLanes, dot[i][v] * scale);
  }
}

// p[i][4] = exp(scores[i] - maximum), zero from num_keys on; returns their sum.
KERNEL float exponentials(const float* scores, int64_t num_keys, float maximum, float* p) {
  F32x8 sum{};
  for (int64_t s = 0; s < kBlock; s += kLanes) {
    F32x8 e = exp(load(scores + s) - maximum);
    for (int64_t lane = std::max<int64_t>(0, num_keys - s); lane < kLanes; ++lane) e[lane] = 0;
    sum += e;
    for (int64_t lane = 0; lane < kLanes; ++lane) p[(s + lane) * kTileRows] = e[lane];
  }
  return horizontal_sum(sum);
}

template <int kVectors>
FATHOM_INLINE void add_values(const float* p, const float* rows, int64_t stride, int64_t num_keys,
                              View2<float> sum_HC, int64_t col) {
  F32x8 sum[kTileRows][kVectors];
  for (int64_t i = 0; i < kTileRows; ++i)
    for (int64_t v = 0; v < kVectors; ++v)
      sum[i][v] = i < sum_HC.rows ? load(sum_HC[i] + col + v * kLanes) : F32x8{};
  multiply_tile<kVectors>(p, rows + col, stride, num_keys, sum);
  for (int64_t i = 0; i < std::min(kTileRows, sum_HC.rows); ++i)
    for (int64_t v = 0; v < kVectors; ++v) store(sum_HC[i] + col + v * kLanes, sum[i][v]);
}

// sum_HC += p rows: a slice of columns at a time for all heads, so that it stays in L1.
KERNEL void accumulate(const float* p, const float* rows, int64_t stride, int64_t num_keys,
                       View2<float> sum_HC) {
  for (int64_t col = 0; col < sum_HC.cols; col += kTileCols) {
    const int64_t vectors = std::min(kTileVectors, (sum_HC.cols - col) / kLanes);
    for (int64_t h = 0; h < sum_HC.rows; h += kTileRows) {
      const View2<float> heads = sum_HC.slice_rows(h, sum_HC.rows);
      const float* p4 = p + h * kBlock;
      if (vectors == 3) add_values<3>(p4, rows, stride, num_keys, heads, col);
      if (vectors == 2) add_values<2>(p4, rows, stride, num_keys, heads, col);
      if (vectors == 1) add_values<1>(p4, rows, stride, num_keys, heads, col);
    }
  }
  // Columns beyond whole vectors.
  for (int64_t h = 0; h < sum_HC.rows; ++h)
    for (int64_t c = sum_HC.cols / kLanes * kLanes; c < sum_HC.cols; ++c)
      for (int64_t s = 0; s < num_keys; ++s)
        sum_HC[h][c] += p[h / kTileRows * kTileRows * kBlock + s * kTileRows + h % kTileRows] *
                        rows[s * stride + c];
}

// One block of keys for all heads.
void add_block(const SparseMla& io, const float* heads, int64_t begin, int64_t count,
               Scratch& scratch, MlaPartial& partial) {
  const int64_t dim = io.q_HD.cols, num_heads = io.q_HD.rows;
  for (int64_t i = 0; i < count; ++i)
    widen_row(io.latent_SD.layout, io.latent_SD[io.keys ? io.keys[begin + i] : begin + i],
              scratch.rows.data() + i * dim);
  pack_columns(scratch.rows.data(), count, dim, scratch.columns.data());
  for (int64_t h = 0; h < num_heads; h += kTileRows) {
    float scores[kTileRows * kBlock];
    score_heads(heads + h * dim, scratch.columns.data(), count, dim, io.scale, scores);
    float* const p = scratch.p.data() + h * kBlock;
    std::fill_n(p, kTileRows * kBlock, 0.0f);
    for (int64_t i = 0; i < std::min(kTileRows, num_heads - h); ++i) {
      float& maximum = partial.maximum[h + i];
      const float block_maximum = max_row(scores + i * kBlock, count);
      if (block_maximum > maximum) {
        const float rescale = std::exp(maximum - block_maximum);
        scale_row(partial.sum_HC[h + i], partial.sum_HC.cols, rescale);
        partial.weight[h + i] *= rescale;
        maximum = block_maximum;
      }
      partial.weight[h + i] += exponentials(scores + i * kBlock, count, maximum, p + i);
    }
  }
  accumulate(scratch.p.data(), scratch.rows.data(), dim, count, partial.sum_HC);
}

void attend(const SparseMla& io, const float* heads, int64_t begin, int64_t end,
            MlaPartial& partial) {
  static thread_local Scratch scratch;
  const int64_t dim = io.q_HD.cols, num_heads = io.q_HD.rows;
  scratch.rows.resize(kBlock * dim);
  scratch.columns.resize(kBlock * dim);
  scratch.p.resize(round_up(num_heads, kTileRows) * kBlock);
  for (int64_t s = begin; s < end; s += kBlock)
    add_block(io, heads, s, std::min(kBlock, end - s), scratch, partial);
}

// out = the softmax-weighted mean over all parts.
void merge(const std::vector<MlaPartial>& parts, View2<float> out_HC) {
  for (int64_t h = 0; h < out_HC.rows; ++h) {
    float maximum = kMinusInfinity, weight = 0, seen = 0;
    for (const MlaPartial& part : parts) {
      maximum = std::max(maximum, part.maximum[h]);
      seen += part.weight[h];
    }
    std::fill_n(out_HC[h], out_HC.cols, 0.0f);
    if (seen == 0) continue;  // no keys; where all scores are NaN, it is one too
    for (const MlaPartial& part : parts) {
      const float factor = std::exp(part.maximum[h] - maximum);
      weight += factor * part.weight[h];
      const float* sum = part.sum_HC[h];
      for (int64_t c = 0; c < out_HC.cols; ++c) out_HC[h][c] += factor * sum[c];
    }
    scale_row(out_HC[h], out_HC.cols, 1 / weight);
  }
}

void check_shapes(const SparseMla& io) {
  CHECK_EQ(io.q_HD.cols, io.latent_SD.layout.dim());
  CHECK_EQ(io.out_HC.rows, io.q_HD.rows);
  CHECK_LE(io.out_HC.cols, io.q_HD.cols);
  CHECK(io.keys != nullptr || io.num_keys <= io.latent_SD.num_rows, "{} keys of {} rows",
        io.num_keys, io.latent_SD.num_rows);
}

// Nothing seen yet.
void clear(MlaPartial& partial) {
  const int64_t num_heads = round_up(round_up_to_pair_tiles(partial.sum_HC.rows), kPairLanes);
  std::fill_n(partial.maximum, num_heads, kMinusInfinity);
  std::fill_n(partial.weight, num_heads, 0.0f);
  std::fill_n(partial.sum_HC.data, num_heads * partial.sum_HC.stride, 0.0f);
}

// Partials for `num_parts`, with room for the heads of whole tiles.
std::vector<MlaPartial> reserve_partials(const SparseMla& io, int64_t num_parts) {
  static thread_local LineBuffer storage;
  const int64_t cols = round_up(io.out_HC.cols, kPairTileCols);
  const int64_t heads = round_up(round_up_to_pair_tiles(io.q_HD.rows), kPairLanes);
  // Longer than the columns need: rows 2 KiB apart would share a few sets of the first cache.
  const int64_t stride = cols + kPairTileCols, size = heads * (stride + 2);
  float* at = storage.reserve<float>(num_parts * size);
  std::vector<MlaPartial> parts;
  for (int64_t part = 0; part < num_parts; ++part, at += size)
    parts.push_back({View2<float>(at, io.q_HD.rows, io.out_HC.cols, stride), at + heads * stride,
                     at + heads * (stride + 1)});
  return parts;
}

// The queries as the kernel that the cache's format and the number of heads ask for takes them.
struct PackedQueries {
  const float* f32 = nullptr;
  const uint32_t* paired = nullptr;
  const uint32_t* tiled = nullptr;
};

PackedQueries pack_queries(const SparseMla& io) {
  static thread_local LineBuffer storage;
  if (can_tile_latents(io)) {
    auto* const packed = storage.reserve<uint32_t>(tiled_queries_size(io));
    tile_queries(io, packed);
    return {.tiled = packed};
  }
  if (can_pair_latents(io.latent_SD.layout)) {
    auto* const packed = storage.reserve<uint32_t>(paired_queries_size(io));
    pair_queries(io, packed);
    return {.paired = packed};
  }
  auto* const packed = storage.reserve<float>(round_up(io.q_HD.rows, kTileRows) * io.q_HD.cols);
  pack_tile_rows(io.q_HD.data, io.q_HD.rows, io.q_HD.cols, io.q_HD.stride, packed);
  return {.f32 = packed};
}

}  // namespace

void sparse_mla(const SparseMla& io) {
  check_shapes(io);
  const int64_t num_parts =
      std::clamp<int64_t>((io.num_keys + kFewestPartKeys - 1) / kFewestPartKeys, 1, kMostParts);
  const PackedQueries queries = pack_queries(io);
  std::vector<MlaPartial> parts = reserve_partials(io, num_parts);
  base::parallel_for(num_parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = io.num_keys * part / num_parts;
      const int64_t last = io.num_keys * (part + 1) / num_parts;
      clear(parts[part]);
      if (queries.tiled) attend_tiled(io, queries.tiled, first, last, parts[part]);
      if (queries.paired) attend_paired(io, queries.paired, first, last, parts[part]);
      if (queries.f32) attend(io, queries.f32, first, last, parts[part]);
    }
  });
  merge(parts, io.out_HC);
}

namespace reference {

void sparse_mla(const SparseMla& io) {
  const int64_t dim = io.q_HD.cols, cols = io.out_HC.cols;
  std::vector<float> rows(io.num_keys * dim);
  for (int64_t i = 0; i < io.num_keys; ++i)
    widen_row(io.latent_SD.layout, io.latent_SD[io.keys ? io.keys[i] : i], rows.data() + i * dim);
  for (int64_t h = 0; h < io.q_HD.rows; ++h) {
    std::vector<double> scores(io.num_keys), sum(cols);
    for (int64_t i = 0; i < io.num_keys; ++i) {
      for (int64_t d = 0; d < dim; ++d)
        scores[i] += static_cast<double>(io.q_HD[h][d]) * rows[i * dim + d];
      scores[i] *= io.scale;
    }
    const double maximum = scores.empty() ? 0 : *std::max_element(scores.begin(), scores.end());
    double weight = 0;
    for (int64_t i = 0; i < io.num_keys; ++i) {
      const double p = std::exp(scores[i] - maximum);
      weight += p;
      for (int64_t c = 0; c < cols; ++c) sum[c] += p * rows[i * dim + c];
    }
    for (int64_t c = 0; c < cols; ++c)
      io.out_HC[h][c] = weight > 0 ? static_cast<float>(sum[c] / weight) : 0.0f;
  }
}

}  // namespace reference
}  // namespace fathom::kernels
