#include <memory>

#include "bench/train_steps.h"
#include "cli/bench_commands.h"
#include "cli/figures.h"
#include "cli/threads_option.h"

namespace fathom::cli {

void add_bench_train_steps_command(CLI::App& bench) {
  auto options = std::make_shared<bench::TrainStepsOptions>();
  auto is_json = std::make_shared<bool>(false);
  CLI::App* command = bench.add_subcommand(
      "train-steps", "Time whole steps of a recipe's dense stage: forward, backward, update");
  command->add_option("--recipe", options->recipe, "Recipe file")->capture_default_str();
  command->add_option("--set", options->overrides, "Override a value: section.key=value");
  command->add_option("--tokens", options->tokens,
                      "Folder of tokens that pretrain cut; left out: random documents");
  command->add_option("--steps", options->steps, "Steps, of which the first is not timed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--export", options->export_folder,
                      "Folder for the initial weights and the batches, for another program");
  add_threads_option(*command, options->num_threads);
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  command->callback(
      [options, is_json] { print_figures(bench::measure_train_steps(*options), *is_json); });
}

}  // namespace fathom::cli
