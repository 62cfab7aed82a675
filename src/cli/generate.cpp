#include <fmt/format.h>

#include <iostream>
#include <iterator>
#include <memory>
#include <random>

#include "base/parallel.h"
#include "base/progress.h"
#include "cli/commands.h"
#include "cli/model_folder.h"
#include "server/generation.h"

namespace fathom::cli {
namespace {

struct GenerateFlags {
  std::filesystem::path model = bundled_model();
  server::GenerationRequest request;
  std::optional<uint64_t> seed;
  int num_threads = 0;
  bool is_json = false;
};

void generate(GenerateFlags& flags) {
  if (flags.num_threads > 0) base::set_num_threads(flags.num_threads);
  if (flags.request.prompt == "-")
    flags.request.prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  flags.request.sampling.seed = flags.seed.value_or(std::random_device{}());
  engine::Engine engine(model::load_model(flags.model));
  const auto tokenizer = text::Tokenizer::load(flags.model / "tokenizer.json");
  const base::Stopwatch watch;
  server::Generation generation(engine, tokenizer, flags.request);
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
  auto& sampling = flags->request.sampling;
  flags->request.max_tokens = 128;
  CLI::App* command = app.add_subcommand("generate", "Continue a text");
  command->add_option("--model", flags->model, "Model folder")->capture_default_str();
  command->add_option("--prompt", flags->request.prompt, "Text to continue; - reads standard input")
      ->required();
  command->add_option("--max-tokens", flags->request.max_tokens, "Most tokens to generate")
      ->capture_default_str();
  command->add_option("--temperature", sampling.temperature, "0 is greedy; up to 2")
      ->capture_default_str();
  command->add_option("--top-p", sampling.top_p, "Mass of the tokens to choose from")
      ->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "Number of tokens to choose from; 0 is all")
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Same seed, same text (default: random)");
  command->add_option("--stop", flags->request.stop, "Text that ends the answer; may be repeated");
  command->add_option("--threads", flags->num_threads, "Threads (default: one a core)");
  command->add_flag("--json", flags->is_json, "Print one JSON object instead");
  command->callback([flags] { generate(*flags); });
}

}  // namespace fathom::cli
