#include <memory>

#include "bench/layer.h"
#include "cli/bench_commands.h"
#include "cli/figures.h"
#include "cli/threads_option.h"

namespace fathom::cli {

void add_bench_layer_command(CLI::App& bench) {
  auto options = std::make_shared<bench::LayerOptions>();
  auto is_json = std::make_shared<bool>(false);
  CLI::App* command = bench.add_subcommand(
      "layer", "Time one whole MoE layer of V3.2's shape with random FP8 weights (12 GB)");
  command->add_option("--contexts", options->contexts, "Tokens in the cache, comma-separated")
      ->delimiter(',')
      ->check(CLI::Range(0, 160000))
      ->capture_default_str();
  add_threads_option(*command, options->num_threads);
  command
      ->add_option("--experts", options->num_experts, "Routed experts, a multiple of 8 from 32 on")
      ->check(CLI::Range(32, 256))
      ->capture_default_str();
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  command->callback(
      [options, is_json] { print_figures(bench::measure_layer(*options), *is_json); });
}

}  // namespace fathom::cli
