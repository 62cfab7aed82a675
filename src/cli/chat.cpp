#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <iostream>
#include <memory>

#include "base/check.h"
#include "cli/commands.h"
#include "cli/model_folder.h"
#include "cli/sampling_flags.h"
#include "server/conversation.h"
#include "server/text_model.h"

namespace fathom::cli {
namespace {

struct ChatFlags {
  std::filesystem::path model = bundled_model();
  std::string system;
  bool is_thinking = false;
  SamplingFlags sampling;
  int max_tokens = 512;
};

std::atomic<bool> is_interrupted{false};

bool show(const text::ChatDelta& delta) {
  if (!delta.reasoning_content.empty()) fmt::print("\x1b[2m{}\x1b[0m", delta.reasoning_content);
  fmt::print("{}", delta.content);
  for (const auto& call : delta.tool_calls) fmt::print("\n[{} {}]", call.name, call.arguments);
  std::fflush(stdout);
  return !is_interrupted;
}

// False where the message could not be answered: it is left out, and the conversation goes on.
bool take_turn(server::Conversation& conversation, const std::string& line,
               server::GenerationRequest request, const SamplingFlags& sampling) {
  request.sampling = sampling.over(request.sampling);
  is_interrupted = false;
  try {
    conversation.answer(line, request, show);
  } catch (const Error& error) {
    fmt::print(stderr, "fathom: {}; the message was left out (/clear forgets the others)\n",
               error.what());
    return false;
  }
  fmt::print("{}\n", is_interrupted ? " [stopped]" : "");
  return true;
}

void chat(ChatFlags& flags) {
  const server::TextModel model = server::load_text_model(flags.model);
  engine::Engine engine(model.model);
  text::ChatOptions options;
  options.thinking_mode =
      flags.is_thinking ? text::ThinkingMode::kThinking : text::ThinkingMode::kChat;
  server::Conversation conversation(engine, model.tokenizer, options, flags.system);
  server::GenerationRequest request;
  request.sampling = model.sampling;
  request.stop_token_ids = model.stop_token_ids;
  request.max_tokens = flags.max_tokens;
  std::signal(SIGINT, [](int) { is_interrupted = true; });
  const bool is_terminal = ::isatty(STDIN_FILENO) != 0;
  if (is_terminal)
    fmt::print("Ctrl-C stops an answer, /clear begins anew, Ctrl-D or /exit ends.\n");
  const auto read_line = [&](std::string& line) {
    if (is_terminal) fmt::print("> ");
    std::fflush(stdout);
    return static_cast<bool>(std::getline(std::cin, line));
  };
  int num_left_out = 0;
  for (std::string line; read_line(line) && line != "/exit";) {
    if (line == "/clear") conversation.clear();
    if (line.empty() || line == "/clear") continue;
    num_left_out += !take_turn(conversation, line, request, flags.sampling);
  }
  if (is_terminal) fmt::print("\n");
  if (!is_terminal && num_left_out > 0) fail("{} messages were left out", num_left_out);
}

}  // namespace

void add_chat_command(CLI::App& app) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = app.add_subcommand("chat", "Talk to a model in the terminal");
  command->add_option("--model", flags->model, "Model folder")->capture_default_str();
  command->add_option("--system", flags->system, "System message");
  command->add_flag("--thinking", flags->is_thinking, "Let the model think before it answers");
  command->add_option("--max-tokens", flags->max_tokens, "Most tokens of an answer")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  flags->sampling.add_to(*command);
  command->callback([flags] { chat(*flags); });
}

}  // namespace fathom::cli
