#include <memory>

#include "bench/streams.h"
#include "cli/bench_commands.h"
#include "cli/cache_option.h"
#include "cli/figures.h"
#include "cli/model_folder.h"
#include "cli/real_range.h"
#include "cli/threads_option.h"

namespace fathom::cli {

void add_bench_streams_command(CLI::App& bench) {
  auto options = std::make_shared<bench::StreamsOptions>();
  auto is_json = std::make_shared<bool>(false);
  options->model = bundled_model();
  CLI::App* command =
      bench.add_subcommand("streams", "Time the engine's decoding, one stream and many");
  command->add_option("--model", options->model, "Model folder")->capture_default_str();
  command->add_option("--streams", options->streams, "Streams at a time, comma-separated")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--prompt-tokens", options->prompt_tokens, "Tokens of each prompt")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command
      ->add_option("--text", options->text,
                   "Text file to cut prompts from (default: random tokens)")
      ->check(CLI::ExistingFile);
  command->add_option("--temperature", options->temperature, "Sampling temperature, 0 is greedy")
      ->check(real_range(0, 2))
      ->capture_default_str();
  command->add_option("--tokens", options->tokens, "Tokens that each stream generates")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command->add_option("--repeats", options->repeats, "Runs of each, the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag_callback(
      "--speculate", [options] { options->engine.speculation = engine::Speculation::kWherePays; },
      "Draft with the MTP layer as well where it pays, by turns with plain decoding");
  command->add_flag_callback(
      "--speculate-always",
      [options] { options->engine.speculation = engine::Speculation::kAlways; },
      "The same whether it pays or not");
  add_cache_option(*command, options->engine.cache_format);
  add_threads_option(*command, options->num_threads);
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  command->callback(
      [options, is_json] { print_figures(bench::measure_streams(*options), *is_json); });
}

}  // namespace fathom::cli
