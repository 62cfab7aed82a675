#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "cli/commands.h"
#include "text/token_lines.h"

namespace fathom::cli {

void add_tokenize_command(CLI::App& app) {
  auto options = std::make_shared<text::TokenizeOptions>();
  CLI::App* command = app.add_subcommand(
      "tokenize", "JSON lines on standard input: a string a line to a list of token ids a line");
  command->add_option("--model", options->model, "Folder with tokenizer.json")->required();
  command->add_flag("--decode", options->decode, "The other way: ids to strings");
  command->callback([options] {
    std::ios::sync_with_stdio(false);
    text::tokenize_lines(*options, std::cin, std::cout);
  });
}

}  // namespace fathom::cli
