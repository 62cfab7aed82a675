// A talk of several turns with one model.
#pragma once

#include <functional>
#include <string>

#include "base/json.h"
#include "server/generation.h"
#include "text/chat_format.h"
#include "text/streaming_chat_parser.h"

namespace fathom::server {

class Conversation {
 public:
  // `system` may be empty: no system message.
  Conversation(engine::Engine& engine, text::Tokenizer tokenizer, const text::ChatOptions& options,
               const std::string& system);

  // Called with each part of an answer; false stops the answer there.
  using Listener = std::function<bool(const text::ChatDelta&)>;
  // Streams the answer to `message`; `request` says all but the prompt. Throws Error, and leaves
  // the message out, where it is not valid UTF-8 or the conversation outgrows the context.
  void answer(const std::string& message, GenerationRequest request, const Listener& listener);
  // Forgets all but the system message.
  void clear() { messages_ = first_messages_; }

 private:
  engine::Engine& engine_;
  text::Tokenizer tokenizer_;
  text::ChatOptions options_;
  Json first_messages_ = Json::array(), messages_;
};

}  // namespace fathom::server
