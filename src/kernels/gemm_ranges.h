// How gemm's bf16 forms go through their items: on all threads, or on the calling one.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/parallel.h"

namespace fathom::kernels {

// body(begin, end) for ranges of `count` items of so much work each; a thread is woken for
// `least_work` and more.
struct ParallelRanges {
  int64_t least_work;

  template <typename Body>
  void operator()(int64_t count, int64_t work, const Body& body) const {
    const int64_t grain = std::max<int64_t>(1, least_work / std::max<int64_t>(work, 1));
    base::parallel_for(count, grain, body);
  }
};

struct SerialRanges {
  template <typename Body>
  void operator()(int64_t count, int64_t, const Body& body) const {
    body(0, count);
  }
};

}  // namespace fathom::kernels
