#include <fmt/format.h>

#include <memory>

#include "bench/foundation.h"
#include "cli/commands.h"
#include "cli/model_folder.h"

namespace fathom::cli {
namespace {

void print_table(const Json& figures) {
  for (const auto& [name, value] : figures.items())
    fmt::print("{:24} {}\n", name,
               value.is_number_float()
                   ? fmt::format("{:.4g}", value.get<double>())
                   : (value.is_string() ? value.get<std::string>() : value.dump()));
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto options = std::make_shared<bench::FoundationOptions>();
  auto is_json = std::make_shared<bool>(false);
  options->model = bundled_model();
  CLI::App* command =
      app.add_subcommand("bench", "Measure forward, decode, load, tokenizer and training speed");
  command->add_option("--model", options->model, "Model folder")->capture_default_str();
  command->add_option("--threads", options->num_threads, "Threads (default: one a core)");
  command->add_option("--tokens", options->forward_tokens, "Tokens of the forward pass")
      ->capture_default_str();
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  command->callback([options, is_json] {
    const Json figures = bench::measure_foundation(*options);
    if (*is_json)
      fmt::print("{}\n", figures.dump(2));
    else
      print_table(figures);
  });
}

}  // namespace fathom::cli
