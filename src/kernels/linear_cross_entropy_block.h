// What the forms of linear_cross_entropy share: sums of exponentials, blocks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace fathom::kernels {

inline constexpr int64_t kLogitBlock = 256;  // rows and columns of logits that are there at once
inline constexpr int64_t kStripRows = 32;    // whose gradients are joined at a time
static_assert(kLogitBlock % kStripRows == 0);

// Rows or columns [begin, end).
struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The sum over a row's exponentials, or over a part of them: exp(maximum) * sum.
struct ExpSum {
  float maximum = -std::numeric_limits<float>::infinity();
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

}  // namespace fathom::kernels
