#include "base/parallel.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "base/check.h"

namespace fathom::base {
namespace {

// Kept here and not in OpenMP's own setting, which LibTorch resets to 1 when it first runs and
// which other threads (autograd's) do not share.
std::atomic<int> configured_threads{omp_get_num_procs()};

}  // namespace

void set_num_threads(int num_threads) {
  CHECK_GE(num_threads, 1);
  configured_threads = num_threads;
}

int num_threads() { return configured_threads; }

namespace internal {

void parallel_ranges(int64_t count, int64_t grain, RangeBody body, void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t most_ranges = (count + grain - 1) / grain;
  if (most_ranges == 1 || num_threads() == 1 || omp_in_parallel()) {
    body(context, 0, count);
    return;
  }
  // More ranges than threads even out unequal items (causal attention, experts of unequal load).
  const int64_t num_ranges = std::min<int64_t>(most_ranges, 8 * num_threads());
  std::exception_ptr error;
  std::mutex error_mutex;
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads())
  for (int64_t range = 0; range < num_ranges; ++range) {
    try {
      body(context, count * range / num_ranges, count * (range + 1) / num_ranges);
    } catch (...) {
      const std::scoped_lock lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace internal
}  // namespace fathom::base
