#include <memory>

#include "bench/library_linear.h"
#include "cli/bench_commands.h"
#include "cli/figures.h"
#include "cli/threads_option.h"

namespace fathom::cli {

void add_bench_library_linear_command(CLI::App& bench) {
  auto options = std::make_shared<bench::LibraryLinearOptions>();
  auto is_json = std::make_shared<bool>(false);
  CLI::App* command = bench.add_subcommand(
      "library-linear", "Time products with BF16 weights by turns with LibTorch's");
  command->add_option("--rows", options->rows, "Rows of the other factor, comma-separated")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--repeats", options->repeats, "Runs of each, the best counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  add_threads_option(*command, options->num_threads);
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  command->callback(
      [options, is_json] { print_figures(bench::measure_library_linear(*options), *is_json); });
}

}  // namespace fathom::cli
