// What a fixed order of sums costs: our products with BF16 weights by turns with LibTorch's.
#pragma once

#include <cstdint>
#include <vector>

#include "base/json.h"

namespace fathom::bench {

struct LibraryLinearOptions {
  std::vector<int64_t> rows = {1, 16, 64, 256};  // of x
  int num_threads = 0;                           // 0: one a core; the library's too
  int repeats = 9;
};

// y = x W^T at shapes of V3.2's projections and experts: kernels::linear with x in f32 rounded to
// bf16 and f32 sums in an order that does not depend on the other rows; at::linear of bf16 tensors
// (oneDNN; sums in f32, y rounded to bf16, order its own); at::linear of f32 tensors (BLAS; twice
// the bytes of W). By turns, the best of each, and ours over the faster of the two. Weights are
// read again and again: those smaller than the last cache come from it for all three.
Json measure_library_linear(const LibraryLinearOptions& options);

}  // namespace fathom::bench
