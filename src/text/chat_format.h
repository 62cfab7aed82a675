// The DeepSeek-V3.2 chat format: messages to prompt text and completion text to messages, byte for
// byte as DeepSeek's published encoder (reference cases: tests/data/chat.json).
#pragma once

#include <string>
#include <string_view>
#include <vector>

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
// "tool_calls"}. Throws Error on anything that the format does not allow.
Json parse_message(std::string_view completion, ThinkingMode mode);

// What a streaming parser has found since the last call; any field may be empty.
struct ChatDelta {
  std::string reasoning_content;
  std::string content;
  struct ToolCall {
    int index = 0;
    std::string name;       // set once, when the call opens
    std::string arguments;  // the next piece of the JSON text of the arguments
  };
  std::vector<ToolCall> tool_calls;
  bool is_empty() const {
    return reasoning_content.empty() && content.empty() && tool_calls.empty();
  }
};

// Splits a completion that arrives in pieces into reasoning, content and tool calls. A call is
// given out whole, once its closing tag has come. The concatenation of the deltas does not depend
// on where the pieces are cut, and on text that parse_message accepts it equals parse_message's
// answer. Malformed markup is given back as content (a server must not lose what the model said);
// no marker that is still incomplete is ever emitted.
class StreamingChatParser {
 public:
  explicit StreamingChatParser(ThinkingMode mode);
  ChatDelta push(std::string_view text);
  ChatDelta finish();  // flushes what was held back
  bool has_tool_calls() const { return num_tool_calls_ > 0; }

 private:
  enum class Part { kReasoning, kContent, kToolCalls, kAfterCalls };
  // Each takes what it can from pending_; true if another part is to go on.
  bool read_reasoning(ChatDelta& delta);
  bool read_content(ChatDelta& delta);
  bool read_tool_calls(ChatDelta& delta);
  void read(ChatDelta& delta);

  Part part_;
  std::string pending_;  // not yet given out
  std::string section_;  // opening of a tool-call section of which no call has been given out yet
  int num_tool_calls_ = 0;
  bool is_finishing_ = false;
};

}  // namespace fathom::text
