// One tool call of a completion, in DSML markup.
#pragma once

#include <string>
#include <string_view>

namespace fathom::text {

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON text of an object, parameters in order
};

struct ToolCallRead {
  enum class Status { kWhole, kUnfinished, kMalformed };
  Status status = Status::kUnfinished;
  ToolCall call;         // of a whole one
  size_t num_bytes = 0;  // of a whole one: to the end of </｜DSML｜invoke> and its new line
};

// Reads the call that `text` begins with, from <｜DSML｜invoke. Text is unfinished as long as more
// of it could still make a call, and once it is whole or malformed, more of it changes nothing.
// Values are free text up to their closing tag; those marked string="false" are spliced as written.
// A parameter that comes twice is malformed.
ToolCallRead read_tool_call(std::string_view text);

}  // namespace fathom::text
