#include <fmt/format.h>

#include <iostream>
#include <iterator>
#include <memory>

#include "base/parallel.h"
#include "base/progress.h"
#include "cli/commands.h"
#include "cli/model_folder.h"
#include "cli/sampling_flags.h"
#include "cli/threads_option.h"
#include "server/generation.h"
#include "server/text_model.h"
#include "text/utf8.h"

namespace fathom::cli {
namespace {

struct GenerateFlags {
  std::filesystem::path model = bundled_model();
  server::GenerationRequest request;
  SamplingFlags sampling;
  int num_threads = 0;
  bool is_json = false;
};

void generate(GenerateFlags& flags) {
  if (flags.num_threads > 0) base::set_num_threads(flags.num_threads);
  if (flags.request.prompt == "-")
    flags.request.prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  const size_t valid = text::valid_utf8_prefix(flags.request.prompt);
  if (valid != flags.request.prompt.size())
    fail("--prompt: byte {} is not valid UTF-8; expected text in UTF-8", valid);
  const server::TextModel model = server::load_text_model(flags.model);
  flags.request.sampling = flags.sampling.over(model.sampling);
  flags.request.stop_token_ids = model.stop_token_ids;
  engine::Engine engine(model.model);
  const base::Stopwatch watch;
  server::Generation generation(engine, model.tokenizer, flags.request);
  std::string text;
  while (const auto piece = generation.next()) {
    text += piece->text;
    if (flags.is_json) continue;
    fmt::print("{}", piece->text);
    std::fflush(stdout);
  }
  const double rate = static_cast<double>(generation.num_completion_tokens()) / watch.seconds();
  if (flags.is_json) {
    fmt::print("{}\n", Json({{"text", text},
                             {"finish_reason", generation.finish_reason()},
                             {"prompt_tokens", generation.num_prompt_tokens()},
                             {"completion_tokens", generation.num_completion_tokens()},
                             {"tokens_per_second", rate}})
                           .dump());
    return;
  }
  fmt::print("\n");
  fmt::print(stderr, "{} tokens, {:.0f} tokens/s\n", generation.num_completion_tokens(), rate);
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto flags = std::make_shared<GenerateFlags>();
  flags->request.max_tokens = 128;
  CLI::App* command = app.add_subcommand("generate", "Continue a text");
  command->add_option("--model", flags->model, "Model folder")->capture_default_str();
  command->add_option("--prompt", flags->request.prompt, "Text to continue; - reads standard input")
      ->required();
  command->add_option("--max-tokens", flags->request.max_tokens, "Most tokens to generate")
      ->capture_default_str();
  flags->sampling.add_to(*command);
  command->add_option("--stop", flags->request.stop, "Text that ends the answer; may be repeated")
      ->check([](const std::string& stop) {
        return stop.empty() ? "is empty; expected the text that ends the answer" : "";
      });
  add_threads_option(*command, flags->num_threads);
  command->add_flag("--json", flags->is_json, "Print one JSON object instead");
  command->callback([flags] { generate(*flags); });
}

}  // namespace fathom::cli
