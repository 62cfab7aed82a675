#include "model/convert_to_dsa.h"

#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/seed_option.h"

namespace fathom::cli {

void add_convert_to_dsa_command(CLI::App& app) {
  auto options = std::make_shared<model::DsaConversion>();
  CLI::App* command = app.add_subcommand(
      "convert-to-dsa", "Add fresh indexers to a dense DeepSeek-V2 or V3 checkpoint, for pretrain");
  command->add_option("source", options->source, "Hugging Face folder")->required();
  command->add_option("target", options->target, "New folder; shares the source's files")
      ->required();
  const CLI::Range sizes(int64_t{1}, int64_t{1} << 24);
  command->add_option("--index-heads", options->index_n_heads, "Indexer heads")
      ->check(sizes)
      ->capture_default_str();
  command->add_option("--index-head-dim", options->index_head_dim, "Their dimension")
      ->check(sizes)
      ->capture_default_str();
  command->add_option("--topk", options->index_topk, "Keys that a query selects")
      ->check(sizes)
      ->capture_default_str();
  add_seed_option(*command, options->seed, "Of the indexers' initial weights")
      ->capture_default_str();
  command->callback([options] {
    model::convert_to_dsa(*options);
    fmt::print(stderr, "wrote {}; train its indexers with pretrain --stage warmup --init {}\n",
               options->target.string(), options->target.string());
  });
}

}  // namespace fathom::cli
