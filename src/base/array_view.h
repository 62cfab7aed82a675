// Views over row-major arrays owned by somebody else: a pointer, the sizes and the row stride.
// The last dimension is contiguous. Shapes are named by suffixes, letters in docs/DIMENSIONS.md.
#pragma once

#include <cstdint>

#include "base/check.h"

namespace fathom {

template <typename T>
struct View2 {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements from one row to the next

  View2() = default;
  View2(T* data, int64_t rows, int64_t cols) : View2(data, rows, cols, cols) {}
  View2(T* data, int64_t rows, int64_t cols, int64_t stride)
      : data(data), rows(rows), cols(cols), stride(stride) {
    CHECK_GE(stride, cols);
  }

  T* operator[](int64_t row) const { return data + row * stride; }
  View2 slice_rows(int64_t begin, int64_t end) const {
    CHECK(0 <= begin && begin <= end && end <= rows, "rows {}..{} of {}", begin, end, rows);
    return View2(data + begin * stride, end - begin, cols, stride);
  }
  operator View2<const T>() const { return View2<const T>(data, rows, cols, stride); }
};

}  // namespace fathom
