#include "kernels/linear_cross_entropy_amx.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "base/parallel.h"
#include "kernels/amx_packed.h"

namespace fathom::kernels {

#if FATHOM_HAS_AMX_KERNELS

namespace {

static_assert(kStripRows == 2 * kAmxRows);  // of x, side by side in a strip's lanes
constexpr int64_t kBlockTiles = kLogitBlock / kAmxRows;
constexpr int64_t kBlockK = kLogitBlock / kAmxK;

int64_t padded_dim(int64_t dim) { return round_up(dim, kAmxRows); }

template <bool kIsA>
void pack_in_parallel(const TileOperand& x, LineBuffer& out) {
  auto* const tiles = out.reserve<uint32_t>(x.num_tiles() * x.num_k() * kTileWords);
  base::parallel_for(x.num_tiles(), 4,
                     [&](int64_t begin, int64_t end) { pack_tiles<kIsA>(x, begin, end, tiles); });
}

// The tiles from line tile `tile` and k tile `k` on.
PackedTiles tiles_from(const LineBuffer& packed, int64_t num_k, int64_t tile, int64_t k) {
  return {packed.data<uint32_t>() + (tile * num_k + k) * kTileWords, num_k};
}

// c (+)= a b over num_k tiles along k, two by two tiles at a time.
void multiply_tiles(const PackedTiles& a, const PackedTiles& b, int64_t num_k, View2<float> c,
                    bool accumulate) {
  const bool is_whole = c.rows % kAmxRows == 0 && c.cols % kAmxCols == 0;
  for (int64_t n = 0; n * kAmxCols < c.cols; n += 2)
    for (int64_t m = 0; m * kAmxRows < c.rows; m += 2) {
      if (!is_whole) {
        multiply_packed_tiles(a, b, m, n, 0, num_k, c, accumulate);
        continue;
      }
      const bool has_m = (m + 1) * kAmxRows < c.rows, has_n = (n + 1) * kAmxCols < c.cols;
      const SumTiles sums{c[m * kAmxRows] + n * kAmxCols,
                          c.stride * static_cast<int64_t>(sizeof(float)), has_m, has_n};
      if (accumulate)
        sums.load();
      else
        clear_sums();
      multiply_two_by_two({a.tile(m, 0), a.tile(m + has_m, 0), kTileRowBytes, kTileBytes},
                          {b.tile(n, 0), b.tile(n + has_n, 0), kTileRowBytes, kTileBytes}, num_k);
      sums.store();
    }
}

// What a thread works in.
struct Scratch {
  alignas(64) float strip[kLogitBlock * kStripRows];                   // [column][row]
  alignas(64) uint32_t d_columns[kBlockTiles * kBlockK * kTileWords];  // A: columns by rows' pairs
  alignas(64) uint32_t d_rows[2 * kBlockK * kTileWords];               // B: columns' pairs by rows
};

Scratch& scratch() {
  static thread_local const auto mine = std::make_unique<Scratch>();
  return *mine;
}

// Of sixteen rows: the greatest of num_columns logits.
AMX_KERNEL __m512 maximum_of(const float* logits, int64_t num_columns) {
  __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t v = 0; v < num_columns; ++v)
    most = _mm512_max_ps(_mm512_load_ps(logits + v * kStripRows), most);
  return most;
}

// sums[i].add(row i's exponentials), of the first num_rows of sixteen rows.
AMX_KERNEL void sum_lanes(const float* logits, int64_t num_columns, int64_t num_rows,
                          ExpSum* sums) {
  const __m512 most = maximum_of(logits, num_columns);
  // Where all are minus infinity: less that, they would be no numbers.
  const __mmask16 is_nothing =
      _mm512_cmp_ps_mask(most, _mm512_set1_ps(-std::numeric_limits<float>::infinity()), _CMP_EQ_OQ);
  const __m512 shift = _mm512_mask_mov_ps(most, is_nothing, _mm512_setzero_ps());
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t v = 0; v < num_columns; ++v)
    sum[v % 2] += exp_negative(_mm512_load_ps(logits + v * kStripRows) - shift);
  alignas(64) float shift_lanes[16], sum_lanes[16];
  _mm512_store_ps(shift_lanes, shift);
  _mm512_store_ps(sum_lanes, sum[0] + sum[1]);
  for (int64_t i = 0; i < num_rows; ++i) sums[i].add({shift_lanes[i], sum_lanes[i]});
}

KERNEL void add_lanes(const float* from, float* sum) {
  for (int64_t i = 0; i < kStripRows; ++i) sum[i] += from[i];
}

// What makes a strip's logits probabilities: exp(logit - maximum) * factor; nothing of rows
// without a target or that are not there.
struct SoftmaxLanes {
  alignas(64) float maximum[kStripRows] = {};
  alignas(64) float factor[kStripRows] = {};
  uint32_t counts = 0;  // a bit a row
};

AMX_KERNEL void differentiate(const SoftmaxLanes& lanes, int64_t num_columns, float* strip) {
  for (int64_t i = 0; i < kStripRows; i += 16) {
    const __m512 maximum = _mm512_load_ps(lanes.maximum + i);
    const __m512 factor = _mm512_load_ps(lanes.factor + i);
    const auto counts = static_cast<__mmask16>(lanes.counts >> i);
    for (int64_t v = 0; v < num_columns; ++v) {
      float* const logits = strip + v * kStripRows + i;
      const __m512 p = exp_negative(_mm512_load_ps(logits) - maximum) * factor;
      _mm512_store_ps(logits, _mm512_maskz_mov_ps(counts, p));
    }
  }
}

// The strip's gradients as operands of both products. num_columns: a multiple of 32. d_columns: the
// strip's k of the first column tile, k_stride words from one column tile to the next.
AMX_KERNEL void pack_gradients(const float* strip, int64_t num_columns, int64_t tile_stride,
                               uint32_t* d_columns, uint32_t* d_rows) {
  for (int64_t v = 0; v < num_columns; v += 2) {
    const float* const even = strip + v * kStripRows;
    const float* const odd = even + kStripRows;
    const __m512 even0 = _mm512_load_ps(even), even1 = _mm512_load_ps(even + 16);
    const __m512 odd0 = _mm512_load_ps(odd), odd1 = _mm512_load_ps(odd + 16);
    uint32_t* const of_columns = d_columns + v / kAmxRows * tile_stride + v % kAmxRows * kAmxPairs;
    _mm512_store_si512(of_columns, round_to_pairs(even0, even1));
    _mm512_store_si512(of_columns + kAmxPairs, round_to_pairs(odd0, odd1));
    uint32_t* const of_rows = d_rows + v / kAmxK * kTileWords + v % kAmxK / 2 * kAmxCols;
    _mm512_store_si512(of_rows, round_to_pairs_of_rows(even0, odd0));
    _mm512_store_si512(of_rows + kBlockK * kTileWords, round_to_pairs_of_rows(even1, odd1));
  }
}

}  // namespace

LogitBlocksAmx::LogitBlocksAmx(const LinearCrossEntropy& io)
    : io_(io), packed_(packed_of_thread()) {
  const View2<const float> head = io.head_VD;
  pack_in_parallel<true>({head.data, head.rows, head.stride, 1, head.cols}, packed_.head_rows);
  if (io.dhead_VD.data)
    pack_in_parallel<true>({head.data, head.cols, 1, head.stride, head.rows},
                           packed_.head_transposed);
}

void LogitBlocksAmx::begin_band(Span rows) {
  band_ = rows;
  const View2<const float> x = io_.x_MD.slice_rows(rows.begin, rows.end);
  pack_in_parallel<false>({x.data, x.rows, x.stride, 1, x.cols}, packed_.x_columns);
  if (io_.dhead_VD.data)
    pack_in_parallel<false>({x.data, x.cols, 1, x.stride, x.rows}, packed_.x_rows);
}

// Logits of the strip of 32 rows from `row` on.
void LogitBlocksAmx::multiply_strip(int64_t row, Span columns, float* strip) const {
  const int64_t num_k = ceil_div(io_.x_MD.cols, kAmxK);
  const int64_t num_rows = std::min(kStripRows, round_up(band_.end - row, kAmxCols));
  multiply_tiles(tiles_from(packed_.head_rows, num_k, columns.begin / kAmxRows, 0),
                 tiles_from(packed_.x_columns, num_k, (row - band_.begin) / kAmxCols, 0), num_k,
                 {strip, round_up(columns.size(), kAmxRows), num_rows, kStripRows}, false);
}

void LogitBlocksAmx::sum(Span rows, Span columns, ExpSum* sums, float* chosen) const {
  const TileShape tiles(kAmxCols);
  float* const strip = scratch().strip;
  for (int64_t row = rows.begin; row < rows.end; row += kStripRows) {
    multiply_strip(row, columns, strip);
    const int64_t count = std::min(kStripRows, rows.end - row), at = row - rows.begin;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t target = io_.target_M[row + i] - columns.begin;
      if (target >= 0 && target < columns.size()) chosen[at + i] = strip[target * kStripRows + i];
    }
    for (int64_t i = 0; i < count; i += 16)
      sum_lanes(strip + i, columns.size(), std::min<int64_t>(16, count - i), sums + at + i);
  }
}

void LogitBlocksAmx::add_gradients(Span rows, Span columns, const ExpSum* sums,
                                   bool is_first_of_columns, float* dx) const {
  const TileShape tiles(kAmxCols);
  Scratch& mine = scratch();
  const int64_t dim = io_.x_MD.cols, num_columns = round_up(columns.size(), kAmxK);
  const PackedTiles transposed = tiles_from(
      packed_.head_transposed, ceil_div(io_.head_VD.rows, kAmxK), 0, columns.begin / kAmxK);
  for (int64_t row = rows.begin; row < rows.end; row += kStripRows) {
    multiply_strip(row, columns, mine.strip);
    differentiate_strip(row, std::min(kStripRows, rows.end - row), columns, sums + row - rows.begin,
                        mine.strip);
    std::fill(mine.strip + columns.size() * kStripRows, mine.strip + num_columns * kStripRows,
              0.0f);
    pack_gradients(mine.strip, num_columns, kBlockK * kTileWords,
                   mine.d_columns + (row - rows.begin) / kStripRows * kTileWords, mine.d_rows);
    float* const part = dx + (row - band_.begin) * padded_dim(dim);
    multiply_tiles(transposed, {mine.d_rows, kBlockK}, num_columns / kAmxK,
                   {part, padded_dim(dim), kStripRows}, !is_first_of_columns);
  }
  const int64_t num_k = ceil_div(band_.size(), kAmxK);
  multiply_tiles({mine.d_columns, kBlockK},
                 tiles_from(packed_.x_rows, num_k, 0, (rows.begin - band_.begin) / kAmxK),
                 ceil_div(rows.size(), kAmxK), io_.dhead_VD.slice_rows(columns.begin, columns.end),
                 rows.begin > 0);
}

// The strip's logits become their gradients.
void LogitBlocksAmx::differentiate_strip(int64_t row, int64_t num_rows, Span columns,
                                         const ExpSum* sums, float* strip) const {
  SoftmaxLanes lanes;
  for (int64_t i = 0; i < num_rows; ++i) {
    if (io_.target_M[row + i] < 0) continue;
    lanes.maximum[i] = sums[i].maximum;
    lanes.factor[i] = static_cast<float>(io_.gradient_scale / sums[i].sum);
    lanes.counts |= uint32_t{1} << i;
  }
  differentiate(lanes, columns.size(), strip);
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t target = io_.target_M[row + i] - columns.begin;
    if (target >= 0 && target < columns.size())
      strip[target * kStripRows + i] -= io_.gradient_scale;
  }
}

int64_t LogitBlocksAmx::part_floats(int64_t num_rows) const {
  return round_up(num_rows, kStripRows) * padded_dim(io_.x_MD.cols);
}

// [dim][32 rows] a strip.
void LogitBlocksAmx::join(Span rows, const float* parts, int64_t num_parts,
                          int64_t part_stride) const {
  const int64_t dim = io_.x_MD.cols;
  for (int64_t row = rows.begin; row < rows.end; row += kStripRows) {
    const float* const strip = parts + (row - band_.begin) * padded_dim(dim);
    for (int64_t d = 0; d < dim; ++d) {
      float sum[kStripRows];
      std::copy_n(strip + d * kStripRows, kStripRows, sum);
      for (int64_t part = 1; part < num_parts; ++part)
        add_lanes(strip + part * part_stride + d * kStripRows, sum);
      for (int64_t i = 0; i < std::min(kStripRows, rows.end - row); ++i)
        io_.dx_MD[row + i][d] = sum[i];
    }
  }
}

#else

LogitBlocksAmx::LogitBlocksAmx(const LinearCrossEntropy& io)
    : io_(io), packed_(packed_of_thread()) {
  CHECK(false, "no AMX: ask has_amx() first");
}
void LogitBlocksAmx::begin_band(Span) {}
void LogitBlocksAmx::sum(Span, Span, ExpSum*, float*) const {}
void LogitBlocksAmx::add_gradients(Span, Span, const ExpSum*, bool, float*) const {}
int64_t LogitBlocksAmx::part_floats(int64_t) const { return 0; }
void LogitBlocksAmx::join(Span, const float*, int64_t, int64_t) const {}

#endif

LogitBlocksAmx::Packed& LogitBlocksAmx::packed_of_thread() {
  static thread_local Packed packed;
  return packed;
}

}  // namespace fathom::kernels
