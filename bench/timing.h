// Repeated runs, and the time of the best.
#pragma once

#include <functional>

namespace fathom::bench {

struct Repeats {
  int fewest = 5;
  int most = 5;
  double seconds = 0;  // beyond `fewest`, goes on until this has passed
};

// run(i) for i = 0, 1, ...; wall time of the shortest.
double best_seconds(const Repeats& repeats, const std::function<void(int)>& run);

}  // namespace fathom::bench
