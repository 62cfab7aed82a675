// How gemm's bf16 forms go through their items: on all threads, or on the calling one.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/parallel.h"

namespace fathom::kernels {

// body(item) for `count` items of so much work each; a thread is woken for `least_work` and more.
struct ParallelItems {
  int64_t least_work;

  template <typename Body>
  void operator()(int64_t count, int64_t work, const Body& body) const {
    const int64_t grain = std::max<int64_t>(1, least_work / std::max<int64_t>(work, 1));
    base::parallel_for(count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) body(item);
    });
  }
};

struct SerialItems {
  template <typename Body>
  void operator()(int64_t count, int64_t, const Body& body) const {
    for (int64_t item = 0; item < count; ++item) body(item);
  }
};

}  // namespace fathom::kernels
