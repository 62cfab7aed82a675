#include <fmt/format.h>

#include <memory>

#include "bench/dsa.h"
#include "bench/foundation.h"
#include "bench/layer.h"
#include "cli/cache_option.h"
#include "cli/commands.h"
#include "cli/model_folder.h"
#include "cli/threads_option.h"

namespace fathom::cli {
namespace {

// Nested objects as dotted names, one figure a line.
void print_table(const Json& figures, const std::string& prefix = "") {
  for (const auto& [name, value] : figures.items()) {
    if (value.is_structured())
      print_table(value, prefix + name + ".");
    else if (value.is_number_float())
      fmt::print("{:40} {:.4g}\n", prefix + name, value.get<double>());
    else
      fmt::print("{:40} {}\n", prefix + name,
                 value.is_string() ? value.get<std::string>() : value.dump());
  }
}

void print(const Json& figures, bool is_json) {
  if (is_json)
    fmt::print("{}\n", figures.dump(2));
  else
    print_table(figures);
}

void add_dsa(CLI::App& bench) {
  auto options = std::make_shared<bench::DsaOptions>();
  auto is_json = std::make_shared<bool>(false);
  CLI::App* command = bench.add_subcommand(
      "dsa", "Time the indexer and sparse attention of one layer at V3.2's shape");
  command->add_option("--contexts", options->contexts, "Tokens in the cache, comma-separated")
      ->delimiter(',')
      ->check(CLI::Range(64, 1 << 24))
      ->capture_default_str();
  command->add_option("--threads", options->num_threads, "Threads")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_cache_option(*command, options->cache);
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  command->callback([options, is_json] { print(bench::measure_dsa(*options), *is_json); });
}

void add_layer(CLI::App& bench) {
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
  command->callback([options, is_json] { print(bench::measure_layer(*options), *is_json); });
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto options = std::make_shared<bench::FoundationOptions>();
  auto is_json = std::make_shared<bool>(false);
  options->model = bundled_model();
  CLI::App* command = app.add_subcommand(
      "bench", "Measure forward, decode, load, tokenizer and training speed; or one kernel");
  command->add_option("--model", options->model, "Model folder")->capture_default_str();
  add_threads_option(*command, options->num_threads);
  command->add_option("--tokens", options->forward_tokens, "Tokens of the forward pass")
      ->capture_default_str();
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  add_dsa(*command);
  add_layer(*command);
  command->callback([command, options, is_json] {
    if (command->get_subcommands().empty()) print(bench::measure_foundation(*options), *is_json);
  });
}

}  // namespace fathom::cli
