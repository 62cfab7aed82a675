// fathom: one program, one subcommand a file. Exit codes: 0 done, 1 failed, 2 wrong usage.
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>

#include "cli/commands.h"

namespace {

// LibTorch's errors end with where it was.
std::string without_trace(std::string message) {
  message.resize(std::min(message.size(), message.find("\nframe #0:")));
  return message;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file that grows too large is an error of its writing
  CLI::App app("fathom: the DeepSeek-V3.2 system");
  app.require_subcommand(1);
  using namespace fathom::cli;  // NOLINT: one line a command
  add_report_command(app);
  add_serve_command(app);
  add_chat_command(app);
  add_generate_command(app);
  add_forward_command(app);
  add_tokenize_command(app);
  add_encode_chat_command(app);
  add_corpus_command(app);
  add_train_tokenizer_command(app);
  add_pretrain_command(app);
  add_convert_to_dsa_command(app);
  add_experiment_command(app);
  add_export_command(app);
  add_bench_command(app);
  try {
    app.parse(argc, argv);  // runs the subcommand's callback
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const std::filesystem::filesystem_error& error) {
    fmt::print(stderr, "fathom: {}: {}\n", error.path1().string(), error.code().message());
    return 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "fathom: {}\n", without_trace(error.what()));
    return 1;
  }
  return 0;
}
