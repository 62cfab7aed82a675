// Random matrices for kernel tests, with the alignment that a test asks for.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "base/array_view.h"
#include "base/random.h"

namespace fathom::kernels {

struct TestMatrix {
  std::vector<float> storage;
  View2<float> view;

  // `misalign` floats before the first element; rows follow each other `padding` floats apart.
  TestMatrix(int64_t rows, int64_t cols, uint64_t seed, int64_t misalign = 0, int64_t padding = 0)
      : storage(misalign + rows * (cols + padding)),
        view(storage.data() + misalign, rows, cols, cols + padding) {
    base::Random random(seed);
    for (float& value : storage) value = static_cast<float>(random.normal());
  }
  TestMatrix(const TestMatrix&) = delete;
};

inline double max_difference(View2<const float> a, View2<const float> b) {
  double worst = 0;
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < a.cols; ++j) {
      if (std::isnan(a[i][j]) || std::isnan(b[i][j])) return INFINITY;
      if (a[i][j] != b[i][j]) worst = std::max<double>(worst, std::abs(a[i][j] - b[i][j]));
    }
  return worst;
}

}  // namespace fathom::kernels
