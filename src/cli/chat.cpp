#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <iostream>
#include <memory>
#include <random>

#include "cli/commands.h"
#include "cli/model_folder.h"
#include "server/generation.h"
#include "text/chat_format.h"
#include "text/streaming_chat_parser.h"

namespace fathom::cli {
namespace {

struct ChatFlags {
  std::filesystem::path model = bundled_model();
  std::string system;
  bool is_thinking = false;
  server::GenerationRequest request;
};

std::atomic<bool> is_interrupted{false};

// Streams one answer; Ctrl-C ends it. Returns the assistant's message.
Json answer(server::Generation& generation, text::ThinkingMode mode) {
  text::StreamingChatParser parser(mode);
  std::string content, reasoning;
  const auto show = [&](const text::ChatDelta& delta) {
    if (!delta.reasoning_content.empty()) fmt::print("\x1b[2m{}\x1b[0m", delta.reasoning_content);
    fmt::print("{}", delta.content);
    for (const auto& call : delta.tool_calls) fmt::print("\n[{} {}]", call.name, call.arguments);
    std::fflush(stdout);
    reasoning += delta.reasoning_content;
    content += delta.content;
  };
  is_interrupted = false;
  while (const auto piece = generation.next()) {
    show(parser.push(piece->text));
    if (is_interrupted) break;
  }
  show(parser.finish());
  fmt::print("{}\n", is_interrupted ? " [stopped]" : "");
  return {{"role", "assistant"}, {"content", content}, {"reasoning_content", reasoning}};
}

void chat(ChatFlags& flags) {
  engine::Engine engine(model::load_model(flags.model));
  const auto tokenizer = text::Tokenizer::load(flags.model / "tokenizer.json");
  std::signal(SIGINT, [](int) { is_interrupted = true; });
  text::ChatOptions options;
  options.thinking_mode =
      flags.is_thinking ? text::ThinkingMode::kThinking : text::ThinkingMode::kChat;
  Json messages = Json::array();
  if (!flags.system.empty()) messages.push_back({{"role", "system"}, {"content", flags.system}});
  const bool is_terminal = ::isatty(STDIN_FILENO) != 0;
  if (is_terminal) fmt::print("Ctrl-C stops an answer, Ctrl-D or /exit ends.\n");
  const auto read_line = [&](std::string& line) {
    if (is_terminal) fmt::print("> ");
    std::fflush(stdout);
    return static_cast<bool>(std::getline(std::cin, line));
  };
  for (std::string line; read_line(line);) {
    if (line == "/exit") break;
    if (line.empty()) continue;
    messages.push_back({{"role", "user"}, {"content", line}});
    flags.request.prompt = text::encode_messages(messages, options);
    flags.request.sampling.seed = std::random_device{}();
    server::Generation generation(engine, tokenizer, flags.request);
    messages.push_back(answer(generation, options.thinking_mode));
  }
  if (is_terminal) fmt::print("\n");
}

}  // namespace

void add_chat_command(CLI::App& app) {
  auto flags = std::make_shared<ChatFlags>();
  flags->request.max_tokens = 512;
  CLI::App* command = app.add_subcommand("chat", "Talk to a model in the terminal");
  command->add_option("--model", flags->model, "Model folder")->capture_default_str();
  command->add_option("--system", flags->system, "System message");
  command->add_flag("--thinking", flags->is_thinking, "Let the model think before it answers");
  command->add_option("--max-tokens", flags->request.max_tokens, "Most tokens of an answer")
      ->capture_default_str();
  command->add_option("--temperature", flags->request.sampling.temperature, "0 is greedy; up to 2")
      ->capture_default_str();
  command->add_option("--top-p", flags->request.sampling.top_p, "Mass of the tokens to choose from")
      ->capture_default_str();
  command->callback([flags] { chat(*flags); });
}

}  // namespace fathom::cli
