#include "bench/train.h"

#include <memory>

#include "cli/bench_commands.h"
#include "cli/figures.h"
#include "cli/model_folder.h"
#include "cli/threads_option.h"

namespace fathom::cli {

void add_bench_train_command(CLI::App& bench) {
  auto options = std::make_shared<bench::TrainOptions>();
  auto is_json = std::make_shared<bool>(false);
  options->model = bundled_model();
  CLI::App* command = bench.add_subcommand(
      "train", "Time a training step and its memory against the sequence's length");
  command->add_option("--model", options->model, "Model folder")->capture_default_str();
  command->add_option("--lengths", options->lengths, "Tokens of the sequence, comma-separated")
      ->delimiter(',')
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command->add_option("--tokens", options->tokens,
                      "Folder of tokens that pretrain cut; left out: random tokens");
  command->add_option("--stages", options->stages, "Which of dense, warmup, sparse")
      ->delimiter(',')
      ->check(CLI::IsMember({"dense", "warmup", "sparse"}))
      ->capture_default_str();
  command->add_option("--topk", options->index_topk, "Keys that a query selects; 0: the model's")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command->add_option("--repeats", options->repeats, "Runs of each, the best counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  add_threads_option(*command, options->num_threads);
  command->add_option("--runs", options->runs,
                      "Folder whose STAGE/metrics.jsonl get a line a length, for experiment");
  command->add_option("--svg", options->svg, "Where to draw FILE.svg");
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  command->callback(
      [options, is_json] { print_figures(bench::measure_training(*options), *is_json); });
}

}  // namespace fathom::cli
