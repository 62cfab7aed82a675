#include "kernels/linear_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "base/parallel.h"
#include "kernels/softmax_row.h"
#include "kernels/tile.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kBlock = 256;      // rows and columns of logits that are there at once
constexpr int64_t kMostRanges = 16;  // of the vocabulary: what threads share out
constexpr int64_t kMostBandRows = 1024;
constexpr int64_t kMostPartFloats = int64_t{1} << 24;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Rows or columns [begin, end).
struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The sum over a row's exponentials, of a part of the vocabulary: exp(maximum) * sum.
struct ExpSum {
  float maximum = kMinusInfinity;
  double sum = 0;

  void add(const ExpSum& other) {
    if (other.sum == 0) return;
    if (sum == 0) {
      *this = other;
      return;
    }
    const float both = std::max(maximum, other.maximum);
    sum = sum * std::exp(static_cast<double>(maximum) - both) +
          other.sum * std::exp(static_cast<double>(other.maximum) - both);
    maximum = both;
  }
};

ExpSum sum_exponentials(float* logits, int64_t count) {
  const float maximum = max_row(logits, count);
  // Where all are minus infinity: less that, they would be no numbers.
  const float shift = maximum == kMinusInfinity ? 0 : maximum;
  return {shift, exp_row(logits, count, shift, 1, logits)};
}

class Band {
 public:
  Band(const LinearCrossEntropy& io, Span rows)
      : io_(io),
        rows_(rows),
        range_columns_(std::max(kBlock, round_up(ceil_div(io.head_VD.rows, kMostRanges), kBlock))),
        num_ranges_(ceil_div(io.head_VD.rows, range_columns_)),
        sums_(num_ranges_ * rows.size()),
        chosen_(rows.size()) {}

  void find_losses() {
    base::parallel_for(num_ranges_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t range = begin; range < end; ++range) sum_range(range);
    });
    for (int64_t i = 0; i < rows_.size(); ++i) {
      ExpSum& all = sums_[i];
      for (int64_t range = 1; range < num_ranges_; ++range)
        all.add(sums_[range * rows_.size() + i]);
      const bool counts = io_.target_M[rows_.begin + i] >= 0;
      io_.loss_M[rows_.begin + i] =
          counts ? std::log(all.sum) + all.maximum - static_cast<double>(chosen_[i]) : 0;
    }
  }

  // parts: kMostRanges * rows * dim.
  void find_gradients(float* parts) {
    const int64_t dim = io_.x_MD.cols;
    const auto part = [&](int64_t range) {
      return View2<float>(parts + range * rows_.size() * dim, rows_.size(), dim);
    };
    base::parallel_for(num_ranges_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t range = begin; range < end; ++range) add_range(range, part(range));
    });
    base::parallel_for(rows_.size(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float* const dx = io_.dx_MD[rows_.begin + i];
        std::copy_n(part(0)[i], dim, dx);
        for (int64_t range = 1; range < num_ranges_; ++range)
          for (int64_t d = 0; d < dim; ++d) dx[d] += part(range)[i][d];
      }
    });
  }

 private:
  template <typename Body>
  void for_each_block(int64_t range, const Body& body) const {
    const int64_t end = std::min((range + 1) * range_columns_, io_.head_VD.rows);
    for (int64_t v = range * range_columns_; v < end; v += kBlock)
      for (int64_t m = rows_.begin; m < rows_.end; m += kBlock)
        body(Span{m, std::min(m + kBlock, rows_.end)}, Span{v, std::min(v + kBlock, end)});
  }

  // Logits of a block, in the calling thread's scratch.
  View2<float> logits_of(Span rows, Span columns) const {
    static thread_local std::vector<float> scratch(kBlock * kBlock);
    const View2<float> logits(scratch.data(), rows.size(), columns.size());
    gemm_serial({rows.size(), columns.size(), io_.x_MD.cols},
                {io_.x_MD[rows.begin], io_.x_MD.stride, 1},
                {io_.head_VD[columns.begin], 1, io_.head_VD.stride}, logits, false, io_.precision);
    return logits;
  }

  void sum_range(int64_t range) {
    for_each_block(range, [&](Span rows, Span columns) {
      const View2<float> logits = logits_of(rows, columns);
      for (int64_t i = 0; i < rows.size(); ++i) {
        const int64_t at = rows.begin + i - rows_.begin;
        const int64_t target = io_.target_M[rows.begin + i] - columns.begin;
        if (target >= 0 && target < columns.size()) chosen_[at] = logits[i][target];
        sums_[range * rows_.size() + at].add(sum_exponentials(logits[i], columns.size()));
      }
    });
  }

  void add_range(int64_t range, View2<float> dx) {
    for_each_block(range, [&](Span rows, Span columns) {
      const View2<float> d_logits = logits_of(rows, columns);
      for (int64_t i = 0; i < rows.size(); ++i) differentiate(rows.begin + i, columns, d_logits[i]);
      const int64_t dim = io_.x_MD.cols;
      gemm_serial({rows.size(), dim, columns.size()}, {d_logits.data, d_logits.stride, 1},
                  {io_.head_VD[columns.begin], io_.head_VD.stride, 1},
                  dx.slice_rows(rows.begin - rows_.begin, rows.end - rows_.begin),
                  columns.begin > range * range_columns_, io_.precision);
      gemm_serial({columns.size(), dim, rows.size()}, {d_logits.data, 1, d_logits.stride},
                  {io_.x_MD[rows.begin], io_.x_MD.stride, 1},
                  io_.dhead_VD.slice_rows(columns.begin, columns.end), rows.begin > 0,
                  io_.precision);
    });
  }

  // Logits of row m become their gradients.
  void differentiate(int64_t m, Span columns, float* logits) const {
    const int64_t target = io_.target_M[m] - columns.begin;
    if (io_.target_M[m] < 0) {
      std::fill_n(logits, columns.size(), 0.0f);
      return;
    }
    const ExpSum& all = sums_[m - rows_.begin];
    exp_row(logits, columns.size(), all.maximum, 1, logits);
    scale_row(logits, columns.size(), static_cast<float>(io_.gradient_scale / all.sum));
    if (target >= 0 && target < columns.size()) logits[target] -= io_.gradient_scale;
  }

  const LinearCrossEntropy& io_;
  const Span rows_;
  const int64_t range_columns_, num_ranges_;
  std::vector<ExpSum> sums_;  // [range][row]; find_losses leaves the whole row's in range 0
  std::vector<float> chosen_;
};

// Rows that share a pass over the vocabulary and the gradient of its ranges.
int64_t band_rows(int64_t dim) {
  return std::clamp(kMostPartFloats / (kMostRanges * dim) / kBlock * kBlock, kBlock, kMostBandRows);
}

}  // namespace

void linear_cross_entropy(const LinearCrossEntropy& io) {
  const bool has_gradients = io.dhead_VD.data != nullptr;
  CHECK_EQ(io.x_MD.cols, io.head_VD.cols);
  CHECK(io.head_VD.rows >= 1 && io.head_VD.cols >= 1, "an empty head");
  if (has_gradients) {
    CHECK(io.dx_MD.rows == io.x_MD.rows && io.dx_MD.cols == io.x_MD.cols, "dx is as x");
    CHECK(io.dhead_VD.rows == io.head_VD.rows && io.dhead_VD.cols == io.head_VD.cols,
          "dhead is as the head");
  }
  for (int64_t m = 0; m < io.x_MD.rows; ++m) CHECK_LT(io.target_M[m], io.head_VD.rows);
  if (has_gradients && io.x_MD.rows == 0)
    for (int64_t v = 0; v < io.dhead_VD.rows; ++v)
      std::fill_n(io.dhead_VD[v], io.dhead_VD.cols, 0.0f);
  const int64_t most_rows = std::min(band_rows(io.x_MD.cols), io.x_MD.rows);
  const auto parts = std::make_unique_for_overwrite<float[]>(
      has_gradients ? kMostRanges * most_rows * io.x_MD.cols : 0);
  for (int64_t m = 0; m < io.x_MD.rows; m += most_rows) {
    Band band(io, {m, std::min(m + most_rows, io.x_MD.rows)});
    band.find_losses();
    if (has_gradients) band.find_gradients(parts.get());
  }
}

}  // namespace fathom::kernels
