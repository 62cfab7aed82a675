#include <CLI/CLI.hpp>
#include <memory>

#include "cli/commands.h"
#include "text/bpe_trainer.h"

namespace fathom::cli {

void add_train_tokenizer_command(CLI::App& app) {
  auto options = std::make_shared<text::TrainTokenizerOptions>();
  CLI::App* command =
      app.add_subcommand("train-tokenizer", "Learn a byte-level BPE vocabulary from text");
  command->add_option("--corpus", options->inputs, "Corpus folders (fathom corpus) or text files")
      ->required();
  command->add_option("--vocab-size", options->bpe.vocab_size, "Tokens, with bytes and specials")
      ->capture_default_str();
  command
      ->add_option("--max-token-bytes", options->bpe.max_token_bytes, "Longest token of the merges")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("--out", options->output, "Folder for tokenizer.json")->required();
  command->callback([options] { text::train_tokenizer(*options); });
}

}  // namespace fathom::cli
