#include <memory>

#include "bench/decoupling.h"
#include "cli/bench_commands.h"
#include "cli/figures.h"
#include "cli/threads_option.h"

namespace fathom::cli {

void add_bench_decoupling_command(CLI::App& bench) {
  auto options = std::make_shared<bench::DecouplingOptions>();
  auto is_json = std::make_shared<bool>(false);
  CLI::App* command = bench.add_subcommand(
      "decoupling", "Compare the main model's gradients with the indexers' loss and without");
  command->add_option("--recipe", options->recipe, "Recipe file")->required();
  command->add_option("--model", options->model, "Checkpoint folder of the recipe's shape")
      ->required();
  command->add_option("--set", options->overrides, "Override a value: section.key=value");
  add_threads_option(*command, options->num_threads);
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  command->callback(
      [options, is_json] { print_figures(bench::measure_decoupling(*options), *is_json); });
}

}  // namespace fathom::cli
