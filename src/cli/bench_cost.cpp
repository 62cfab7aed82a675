#include "bench/cost.h"

#include <memory>

#include "cli/bench_commands.h"
#include "cli/figures.h"
#include "cli/threads_option.h"

namespace fathom::cli {

void add_bench_cost_command(CLI::App& bench) {
  auto options = std::make_shared<bench::CostOptions>();
  auto is_json = std::make_shared<bool>(false);
  CLI::App* command = bench.add_subcommand(
      "cost", "Time a token against its position, dense and with DSA, and draw it");
  command->add_option("--model", options->model,
                      "Model folder; left out: one MoE layer of V3.2's shape, random weights");
  command
      ->add_option("--positions", options->positions, "Tokens before, comma-separated, ascending")
      ->delimiter(',')
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command->add_option("--chunk", options->chunk, "Tokens of a prefill at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--repeats", options->repeats, "Runs of each, the best counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag("!--decode-only", options->has_prefill, "Leave prefill out");
  add_threads_option(*command, options->num_threads);
  command->add_option("--svg", options->svg, "Where to draw FILE.svg");
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  command->callback([options, is_json] { print_figures(bench::measure_cost(*options), *is_json); });
}

}  // namespace fathom::cli
