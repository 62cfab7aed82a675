// Repeated runs: the time of the best, the median of what they gave.
#pragma once

#include <functional>
#include <vector>

namespace fathom::bench {

struct Repeats {
  int fewest = 5;
  int most = 5;
  double seconds = 0;  // beyond `fewest`, goes on until this has passed
  // Counts the calling thread's processor time, for work that stays on it: what else a shared
  // machine does in between is not counted.
  bool is_processor_time = false;
};

// run(i) for i = 0, 1, ...; the time of the shortest, on the wall unless asked otherwise.
double best_seconds(const Repeats& repeats, const std::function<void(int)>& run);

// The upper one of two in the middle; at least one value.
double median(std::vector<double> values);

}  // namespace fathom::bench
