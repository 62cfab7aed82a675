#include "kernels/linear_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/parallel.h"
#include "kernels/amx_tile.h"
#include "kernels/linear_cross_entropy_amx.h"
#include "kernels/linear_cross_entropy_block.h"
#include "kernels/softmax_row.h"
#include "kernels/tile.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kMostRanges = 16;  // of the vocabulary: what threads share out
constexpr int64_t kMostBandRows = 1024;
constexpr int64_t kMostPartFloats = int64_t{1} << 24;

// Blocks by gemm; linear_cross_entropy_amx.h says what each function does.
class LogitBlocks {
 public:
  explicit LogitBlocks(const LinearCrossEntropy& io) : io_(io) {}

  void begin_band(Span rows) { band_ = rows; }

  void sum(Span rows, Span columns, ExpSum* sums, float* chosen) const {
    const View2<float> logits = logits_of(rows, columns);
    for (int64_t i = 0; i < rows.size(); ++i) {
      const int64_t target = io_.target_M[rows.begin + i] - columns.begin;
      if (target >= 0 && target < columns.size()) chosen[i] = logits[i][target];
      const float maximum = max_row(logits[i], columns.size());
      // Where all are minus infinity: less that, they would be no numbers.
      const float shift = maximum == -std::numeric_limits<float>::infinity() ? 0 : maximum;
      sums[i].add({shift, exp_row(logits[i], columns.size(), shift, 1, logits[i])});
    }
  }

  void add_gradients(Span rows, Span columns, const ExpSum* sums, bool is_first_of_columns,
                     float* dx) const {
    const View2<float> d_logits = logits_of(rows, columns);
    for (int64_t i = 0; i < rows.size(); ++i)
      differentiate(rows.begin + i, columns, sums[i], d_logits[i]);
    const int64_t dim = io_.x_MD.cols;
    gemm_serial({rows.size(), dim, columns.size()}, {d_logits.data, d_logits.stride, 1},
                {io_.head_VD[columns.begin], io_.head_VD.stride, 1},
                {dx + (rows.begin - band_.begin) * dim, rows.size(), dim}, !is_first_of_columns,
                io_.precision);
    gemm_serial({columns.size(), dim, rows.size()}, {d_logits.data, 1, d_logits.stride},
                {io_.x_MD[rows.begin], io_.x_MD.stride, 1},
                io_.dhead_VD.slice_rows(columns.begin, columns.end), rows.begin > 0, io_.precision);
  }

  int64_t part_floats(int64_t num_rows) const { return num_rows * io_.x_MD.cols; }

  void join(Span rows, const float* parts, int64_t num_parts, int64_t part_stride) const {
    const int64_t dim = io_.x_MD.cols;
    for (int64_t m = rows.begin; m < rows.end; ++m) {
      const float* const part = parts + (m - band_.begin) * dim;
      float* const dx = io_.dx_MD[m];
      std::copy_n(part, dim, dx);
      for (int64_t i = 1; i < num_parts; ++i)
        for (int64_t d = 0; d < dim; ++d) dx[d] += part[i * part_stride + d];
    }
  }

 private:
  // In the calling thread's scratch.
  View2<float> logits_of(Span rows, Span columns) const {
    static thread_local std::vector<float> scratch(kLogitBlock * kLogitBlock);
    const View2<float> logits(scratch.data(), rows.size(), columns.size());
    gemm_serial({rows.size(), columns.size(), io_.x_MD.cols},
                {io_.x_MD[rows.begin], io_.x_MD.stride, 1},
                {io_.head_VD[columns.begin], 1, io_.head_VD.stride}, logits, false, io_.precision);
    return logits;
  }

  // Logits of row m become their gradients.
  void differentiate(int64_t m, Span columns, const ExpSum& sum, float* logits) const {
    if (io_.target_M[m] < 0) {
      std::fill_n(logits, columns.size(), 0.0f);
      return;
    }
    exp_row(logits, columns.size(), sum.maximum, 1, logits);
    scale_row(logits, columns.size(), static_cast<float>(io_.gradient_scale / sum.sum));
    const int64_t target = io_.target_M[m] - columns.begin;
    if (target >= 0 && target < columns.size()) logits[target] -= io_.gradient_scale;
  }

  const LinearCrossEntropy& io_;
  Span band_ = {0, 0};
};

// How the vocabulary is shared out, whatever the threads.
struct Ranges {
  int64_t vocab, width, count;

  explicit Ranges(int64_t vocab)
      : vocab(vocab),
        width(round_up(ceil_div(vocab, kMostRanges), kLogitBlock)),
        count(ceil_div(vocab, width)) {}

  // body(range, its blocks' rows and columns), in parallel over the ranges.
  template <typename Body>
  void for_each_block(Span rows, const Body& body) const {
    base::parallel_for(count, 1, [&](int64_t first, int64_t last) {
      for (int64_t v = first * width; v < std::min(last * width, vocab); v += kLogitBlock)
        for (int64_t m = rows.begin; m < rows.end; m += kLogitBlock)
          body(v / width, Span{m, std::min(m + kLogitBlock, rows.end)},
               Span{v, std::min(v + kLogitBlock, vocab)});
    });
  }
};

template <typename Blocks>
class Band {
 public:
  Band(const LinearCrossEntropy& io, Span rows, Blocks& blocks)
      : io_(io),
        rows_(rows),
        blocks_(blocks),
        ranges_(io.head_VD.rows),
        sums_(ranges_.count * rows.size()),
        chosen_(rows.size()) {
    blocks_.begin_band(rows);
  }

  void find_losses() {
    ranges_.for_each_block(rows_, [&](int64_t range, Span rows, Span columns) {
      const int64_t at = rows.begin - rows_.begin;
      blocks_.sum(rows, columns, sums_.data() + range * rows_.size() + at, chosen_.data() + at);
    });
    for (int64_t i = 0; i < rows_.size(); ++i) {
      ExpSum& all = sums_[i];
      for (int64_t range = 1; range < ranges_.count; ++range)
        all.add(sums_[range * rows_.size() + i]);
      const bool counts = io_.target_M[rows_.begin + i] >= 0;
      io_.loss_M[rows_.begin + i] =
          counts ? std::log(all.sum) + all.maximum - static_cast<double>(chosen_[i]) : 0;
    }
  }

  void find_gradients(LineBuffer& scratch) {
    const int64_t stride = round_up(blocks_.part_floats(rows_.size()), 16);
    auto* const parts = scratch.reserve<float>(ranges_.count * stride);
    ranges_.for_each_block(rows_, [&](int64_t range, Span rows, Span columns) {
      blocks_.add_gradients(rows, columns, sums_.data() + rows.begin - rows_.begin,
                            columns.begin == range * ranges_.width, parts + range * stride);
    });
    base::parallel_for(ceil_div(rows_.size(), kStripRows), 1, [&](int64_t first, int64_t last) {
      const Span rows{rows_.begin + first * kStripRows,
                      std::min(rows_.begin + last * kStripRows, rows_.end)};
      blocks_.join(rows, parts, ranges_.count, stride);
    });
  }

 private:
  const LinearCrossEntropy& io_;
  const Span rows_;
  Blocks& blocks_;
  const Ranges ranges_;
  std::vector<ExpSum> sums_;  // [range][row]; find_losses leaves the whole row's in range 0
  std::vector<float> chosen_;
};

// Rows that share a pass over the vocabulary and the gradient of its ranges.
int64_t band_rows(int64_t dim) {
  return std::clamp(kMostPartFloats / (kMostRanges * dim) / kLogitBlock * kLogitBlock, kLogitBlock,
                    kMostBandRows);
}

template <typename Blocks>
void for_each_band(const LinearCrossEntropy& io, Blocks blocks) {
  const int64_t most_rows = band_rows(io.x_MD.cols);
  static thread_local LineBuffer parts;
  for (int64_t m = 0; m < io.x_MD.rows; m += most_rows) {
    Band<Blocks> band(io, {m, std::min(m + most_rows, io.x_MD.rows)}, blocks);
    band.find_losses();
    if (io.dhead_VD.data) band.find_gradients(parts);
  }
}

void check(const LinearCrossEntropy& io) {
  CHECK_EQ(io.x_MD.cols, io.head_VD.cols);
  CHECK(io.head_VD.rows >= 1 && io.head_VD.cols >= 1, "an empty head");
  for (int64_t m = 0; m < io.x_MD.rows; ++m)
    CHECK(-1 <= io.target_M[m] && io.target_M[m] < io.head_VD.rows, "target {} of {}",
          io.target_M[m], io.head_VD.rows);
  if (!io.dhead_VD.data) {
    CHECK(!io.dx_MD.data, "dx without dhead");
    return;
  }
  CHECK(io.dx_MD.rows == io.x_MD.rows && io.dx_MD.cols == io.x_MD.cols, "dx is as x");
  CHECK(io.dhead_VD.rows == io.head_VD.rows && io.dhead_VD.cols == io.head_VD.cols,
        "dhead is as the head");
}

}  // namespace

void linear_cross_entropy(const LinearCrossEntropy& io) {
  check(io);
  if (io.x_MD.rows == 0) {
    for (int64_t v = 0; v < io.dhead_VD.rows; ++v)
      std::fill_n(io.dhead_VD[v], io.dhead_VD.cols, 0.0f);
    return;
  }
  if (io.precision == Precision::kBF16 && has_amx())
    for_each_band(io, LogitBlocksAmx(io));
  else
    for_each_band(io, LogitBlocks(io));
}

}  // namespace fathom::kernels
