#include "server/conversation.h"

#include "base/check.h"
#include "text/utf8.h"

namespace fathom::server {

Conversation::Conversation(engine::Engine& engine, text::Tokenizer tokenizer,
                           const text::ChatOptions& options, const std::string& system)
    : engine_(engine), tokenizer_(std::move(tokenizer)), options_(options) {
  if (!system.empty()) first_messages_.push_back({{"role", "system"}, {"content", system}});
  clear();
}

void Conversation::answer(const std::string& message, GenerationRequest request,
                          const Listener& listener) {
  if (!text::is_valid_utf8(message)) fail("the message is not valid UTF-8");
  Json messages = messages_;
  messages.push_back({{"role", "user"}, {"content", message}});
  request.prompt = text::encode_messages(messages, options_);
  Generation generation(engine_, tokenizer_, request);
  text::StreamingChatParser parser(options_.thinking_mode);
  std::string content, reasoning;
  const auto hear = [&](const text::ChatDelta& delta) {
    reasoning += delta.reasoning_content;
    content += delta.content;
    return listener(delta);
  };
  while (const auto piece = generation.next())
    if (!hear(parser.push(piece->text))) break;
  hear(parser.finish());
  messages.push_back(
      {{"role", "assistant"}, {"content", content}, {"reasoning_content", reasoning}});
  messages_ = std::move(messages);
}

}  // namespace fathom::server
