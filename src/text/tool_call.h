// One tool call of a completion, in DSML markup.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace fathom::text {

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON text of an object, parameters in order
};

// `markup` from <｜DSML｜invoke to </｜DSML｜invoke> and its new line. Nothing if it is not exactly
// as the format has it, or if a parameter comes twice. Values marked string="false" are spliced as
// written.
std::optional<ToolCall> parse_tool_call(std::string_view markup);

}  // namespace fathom::text
