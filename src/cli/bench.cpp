#include <memory>

#include "bench/foundation.h"
#include "cli/bench_commands.h"
#include "cli/commands.h"
#include "cli/figures.h"
#include "cli/model_folder.h"
#include "cli/threads_option.h"

namespace fathom::cli {

void add_bench_command(CLI::App& app) {
  auto options = std::make_shared<bench::FoundationOptions>();
  auto is_json = std::make_shared<bool>(false);
  options->model = bundled_model();
  CLI::App* command = app.add_subcommand(
      "bench", "Measure forward, decode, load, tokenizer and training speed; or one kernel");
  command->add_option("--model", options->model, "Model folder")->capture_default_str();
  add_threads_option(*command, options->num_threads);
  command->add_option("--tokens", options->forward_tokens, "Tokens of the forward pass")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  add_bench_cost_command(*command);
  add_bench_decoupling_command(*command);
  add_bench_dsa_command(*command);
  add_bench_layer_command(*command);
  add_bench_library_linear_command(*command);
  add_bench_linear_command(*command);
  add_bench_serve_command(*command);
  add_bench_streams_command(*command);
  add_bench_train_command(*command);
  add_bench_train_steps_command(*command);
  command->callback([command, options, is_json] {
    if (command->get_subcommands().empty())
      print_figures(bench::measure_foundation(*options), *is_json);
  });
}

}  // namespace fathom::cli
