// The DeepSeek-V3.2 chat format: messages to prompt text and completion text to messages, byte for
// byte as DeepSeek's published encoder (reference cases: tests/data/chat.json).
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

namespace fathom::text {

enum class ThinkingMode { kChat, kThinking };

struct ChatOptions {
  ThinkingMode thinking_mode = ThinkingMode::kThinking;
  bool drop_thinking = true;  // forget reasoning before the last user message
  bool add_default_bos_token = true;
  Json context = Json::array();  // messages already rendered: they only give positions
};

// `options` as in chat.json: {"thinking_mode": "chat"|"thinking", "drop_thinking", ...}. Unknown
// keys are an Error.
ChatOptions parse_chat_options(const Json& options);

// Messages in OpenAI form. Throws Error naming the message's index and what is wrong with it.
std::string encode_messages(const Json& messages, const ChatOptions& options);

// The strict parser of the published encoder: {"role", "content", "reasoning_content",
// "tool_calls"}. Throws Error on anything that the format does not allow, a call that is cut off
// included (the published parser lets some of those pass).
Json parse_message(std::string_view completion, ThinkingMode mode);

}  // namespace fathom::text
