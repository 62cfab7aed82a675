#include "bench/timing.h"

#include <algorithm>

#include "base/progress.h"

namespace fathom::bench {

double best_seconds(const Repeats& repeats, const std::function<void(int)>& run) {
  double best = 1e30, total = 0;
  for (int i = 0; i < repeats.fewest || (i < repeats.most && total < repeats.seconds); ++i) {
    const base::Stopwatch watch;
    run(i);
    const double seconds = watch.seconds();
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

}  // namespace fathom::bench
