// Products with FP8-block weights at the shapes of V3.2's projections and experts.
#pragma once

#include <cstdint>
#include <vector>

#include "base/json.h"

namespace fathom::bench {

struct LinearOptions {
  std::vector<int64_t> rows = {1, 2, 8, 16, 64, 256};  // of x: 1 is decode, an expert's in prefill
  int num_threads = 0;                                 // 0: one a core
  int64_t buffer_mbyte = 512;                          // of weights, which each run reads on in
  float factor = 1.0f / 64;  // of W's blocks: kernels may take powers of two (ue8m0) another way
};

// For each matrix (checkpoint name, outputs x inputs) and number of rows: the best rate of several
// products, in bytes of W and in operations, and its share of the best peaks measured before,
// between and after. Deploy numerics: x in bf16, W in e4m3 with a factor for each 128 x 128. Runs
// read on in the buffer over all matrices, beginning anew at its end: weights come from memory
// where the buffer is larger than the last cache by a matrix and more (o_proj has 117 MB). Throws
// Error if it holds none.
Json measure_linear(const LinearOptions& options);

}  // namespace fathom::bench
