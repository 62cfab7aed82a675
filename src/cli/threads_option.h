// --threads: how many threads parallel loops use.
#pragma once

#include <CLI/CLI.hpp>

namespace fathom::cli {

// 0, the default of `num_threads`, stands for one a core.
inline void add_threads_option(CLI::App& command, int& num_threads) {
  command.add_option("--threads", num_threads, "Threads (default: one a core)")
      ->check(CLI::Range(1, 1024));
}

}  // namespace fathom::cli
