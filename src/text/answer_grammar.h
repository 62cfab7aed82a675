// What a chat completion may look like as a whole: reasoning, then free text, JSON or tool calls in
// DSML markup.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "text/chat_format.h"
#include "text/grammar.h"

namespace fathom::text {

struct AnswerFormat {
  ThinkingMode thinking_mode = ThinkingMode::kChat;
  // kText: free text, then perhaps calls, well formed. kCalls: at least one call, no text before
  // it. kJson: an object that satisfies `schema`, or any object where there is none; where there
  // are tools, it may be calls instead.
  enum class Kind { kText, kCalls, kJson } kind = Kind::kText;
  Json tools = Json::array();  // as in a request: {"type": "function", "function": {...}}
  bool allows_many_calls = true;
  Json schema = {};
  bool is_strict = false;  // of the schema; each tool says it for itself
};

// Arguments follow each function's "parameters": strings stand as they are (never with the markup
// in them), all else is JSON. A keyword that cannot be held to is refused where "strict" is true
// and passed over elsewhere. Throws Error naming the place.
Grammar answer_grammar(const AnswerFormat& format);

}  // namespace fathom::text
