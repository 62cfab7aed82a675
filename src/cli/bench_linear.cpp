#include <memory>

#include "bench/linear.h"
#include "cli/bench_commands.h"
#include "cli/figures.h"
#include "cli/real_range.h"
#include "cli/threads_option.h"

namespace fathom::cli {

void add_bench_linear_command(CLI::App& bench) {
  auto options = std::make_shared<bench::LinearOptions>();
  auto is_json = std::make_shared<bool>(false);
  CLI::App* command = bench.add_subcommand(
      "linear", "Time products with FP8 weights at the shapes of V3.2's projections and experts");
  command->add_option("--rows", options->rows, "Rows of the other factor, comma-separated")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command
      ->add_option("--buffer-mbyte", options->buffer_mbyte,
                   "Weights that the runs read one after another; beyond the last cache")
      ->check(CLI::Range(118, 16384))
      ->capture_default_str();
  command
      ->add_option("--factor", options->factor,
                   "Of W's blocks; kernels may take a power of two another way")
      ->check(real_range(1e-6, 1e6))
      ->capture_default_str();
  add_threads_option(*command, options->num_threads);
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  command->callback(
      [options, is_json] { print_figures(bench::measure_linear(*options), *is_json); });
}

}  // namespace fathom::cli
