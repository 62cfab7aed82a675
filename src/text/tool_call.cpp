#include "text/tool_call.h"

#include <set>

#include "text/chat_markup.h"
#include "text/python_json.h"

namespace fathom::text {
namespace {

bool skip(std::string_view expected, std::string_view& text) {
  if (!text.starts_with(expected)) return false;
  text.remove_prefix(expected.size());
  return true;
}

// What comes before `end`, which is skipped too.
std::optional<std::string> take_until(std::string_view end, std::string_view& text) {
  const size_t at = text.find(end);
  if (at == std::string_view::npos) return {};
  std::string taken(text.substr(0, at));
  text.remove_prefix(at + end.size());
  return taken;
}

}  // namespace

std::optional<ToolCall> parse_tool_call(std::string_view text) {
  if (!skip(markup::kInvokeOpen, text)) return {};
  const auto name = take_until("\">\n", text);
  if (!name || name->find('\n') != std::string::npos) return {};
  ToolCall call{*name, "{"};
  std::set<std::string> seen;
  while (skip(markup::kParameterOpen, text)) {
    const auto key = take_until("\" string=\"", text);
    const bool is_string = text.starts_with("true\">");
    if (!key || !(skip("true\">", text) || skip("false\">", text))) return {};
    const auto value = take_until(markup::kParameterClose, text);
    if (!value || !seen.insert(*key).second) return {};
    call.arguments += seen.size() > 1 ? ", " : "";
    call.arguments += python_json(*key) + ": " + (is_string ? python_json(*value) : *value);
  }
  call.arguments += "}";
  if (seen.empty()) skip("\n", text);  // no parameters leave an empty line
  if (text != markup::kInvokeClose) return {};
  return call;
}

}  // namespace fathom::text
