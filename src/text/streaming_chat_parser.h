// The V3.2 chat format's completions as they arrive, piece by piece.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/chat_format.h"

namespace fathom::text {

// What a streaming parser has found since the last call; any field may be empty.
struct ChatDelta {
  std::string reasoning_content;
  std::string content;
  struct ToolCall {
    int index = 0;
    std::string name;
    std::string arguments;  // JSON text of an object, whole
  };
  std::vector<ToolCall> tool_calls;
};

// Splits a completion that arrives in pieces into reasoning, content and tool calls. A call is
// given out whole, once its closing tag has come. The concatenation of the deltas does not depend
// on where the pieces are cut, and on text that parse_message accepts it equals parse_message's
// answer. Malformed markup is given back as content (a server must not lose what the model said);
// no marker that is still incomplete is ever emitted, nor a call that a limit has cut. The text of
// the end marker ends everything: neither it nor what follows is given out.
class StreamingChatParser {
 public:
  explicit StreamingChatParser(ThinkingMode mode);
  ChatDelta push(std::string_view text);
  // Flushes what was held back. A call that has begun is dropped if the completion was cut: it is
  // not malformed, but nothing to act on or to show.
  ChatDelta finish(bool was_cut = false);

 private:
  enum class Part { kReasoning, kContent, kToolCalls, kAfterCalls, kDone };
  struct Ending {
    std::string_view marker;
    Part next = Part::kDone;
  };
  // Both take what they can from pending_ and say whether another part is to go on.
  bool read_text(std::vector<Ending> endings, std::string& out);
  bool read_tool_calls(ChatDelta& delta);
  void read(ChatDelta& delta);

  Part part_;
  std::string pending_;  // not yet given out
  int num_tool_calls_ = 0;
  bool is_finishing_ = false, was_cut_ = false;
};

}  // namespace fathom::text
