#include "bench/timing.h"

#include <time.h>

#include <algorithm>

namespace fathom::bench {
namespace {

double seconds_of(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

double best_seconds(const Repeats& repeats, const std::function<void(int)>& run) {
  const clockid_t clock = repeats.is_processor_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
  double best = 1e30, total = 0;
  for (int i = 0; i < repeats.fewest || (i < repeats.most && total < repeats.seconds); ++i) {
    const double begin = seconds_of(clock);
    run(i);
    const double seconds = seconds_of(clock) - begin;
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace fathom::bench
