#include <memory>

#include "bench/dsa.h"
#include "cli/bench_commands.h"
#include "cli/cache_option.h"
#include "cli/figures.h"

namespace fathom::cli {

void add_bench_dsa_command(CLI::App& bench) {
  auto options = std::make_shared<bench::DsaOptions>();
  auto is_json = std::make_shared<bool>(false);
  CLI::App* command = bench.add_subcommand(
      "dsa", "Time the indexer and sparse attention of one layer at V3.2's shape");
  command->add_option("--contexts", options->contexts, "Tokens in the cache, comma-separated")
      ->delimiter(',')
      ->check(CLI::Range(64, 1 << 24))
      ->capture_default_str();
  command->add_option("--threads", options->num_threads, "Threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  add_cache_option(*command, options->cache);
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  command->callback([options, is_json] { print_figures(bench::measure_dsa(*options), *is_json); });
}

}  // namespace fathom::cli
