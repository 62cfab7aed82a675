#include "text/tool_call.h"

#include <algorithm>
#include <optional>
#include <set>

#include "text/chat_markup.h"
#include "text/python_json.h"

namespace fathom::text {
namespace {

using Status = ToolCallRead::Status;

Status skip(std::string_view expected, std::string_view& text) {
  if (text.starts_with(expected)) {
    text.remove_prefix(expected.size());
    return Status::kWhole;
  }
  return expected.starts_with(text) ? Status::kUnfinished : Status::kMalformed;
}

// What lies before `end`, which is skipped too.
std::optional<std::string_view> take_until(std::string_view end, std::string_view& text) {
  const size_t at = text.find(end);
  if (at == std::string_view::npos) return {};
  const std::string_view taken = text.substr(0, at);
  text.remove_prefix(at + end.size());
  return taken;
}

bool drop_end(std::string_view end, std::string_view& text) {
  if (!text.ends_with(end)) return false;
  text.remove_suffix(end.size());
  return true;
}

void skip_white_space(std::string_view& text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t\n\v\f\r"), text.size()));
}

// ` name="f">` and a new line; a call without parameters has an empty line more.
Status read_name(std::string_view& text, std::string& name) {
  std::string_view start = text;
  skip_white_space(start);
  if (const Status status = skip("name=\"", start); status != Status::kWhole) return status;
  const size_t end = std::min(start.find(markup::kParameterTag), start.find(markup::kInvokeEndTag));
  if (end == std::string_view::npos) return Status::kUnfinished;
  std::string_view rest = start.substr(0, end);
  if (!drop_end("\">\n\n", rest) && !drop_end("\">\n", rest)) return Status::kMalformed;
  name = rest;
  text = start.substr(end);
  return Status::kWhole;
}

struct Parameter {
  std::string name;
  std::string json_value;
};

// From after the parameter's tag to the end of its closing one.
Status read_parameter(std::string_view& text, Parameter& parameter) {
  auto inside = take_until(markup::kParameterEndTag, text);
  if (!inside) return Status::kUnfinished;
  if (skip(" name=\"", *inside) != Status::kWhole || !drop_end("<", *inside))
    return Status::kMalformed;
  constexpr std::string_view kString = "\" string=\"true\">", kOther = "\" string=\"false\">";
  const bool is_string = inside->find(kString) < inside->find(kOther);
  const auto name = take_until(is_string ? kString : kOther, *inside);
  if (!name) return Status::kMalformed;
  parameter.name = *name;
  parameter.json_value = is_string ? python_json(std::string(*inside)) : std::string(*inside);
  return Status::kWhole;
}

// From the first parameter or the call's closing tag to the latter's end.
Status read_arguments(std::string_view& text, std::string& arguments) {
  std::set<std::string> seen;
  arguments = "{";
  while (text.starts_with(markup::kParameterTag)) {
    text.remove_prefix(markup::kParameterTag.size());
    Parameter parameter;
    Status status = read_parameter(text, parameter);
    if (status == Status::kWhole) status = skip(">\n", text);
    if (status != Status::kWhole) return status;
    if (!seen.insert(parameter.name).second) return Status::kMalformed;
    arguments += seen.size() > 1 ? ", " : "";
    arguments += python_json(parameter.name) + ": " + parameter.json_value;
  }
  arguments += "}";
  // Which of the two tags it is to be may still be open.
  if (markup::kParameterTag.starts_with(text)) return Status::kUnfinished;
  const Status status = skip(markup::kInvokeEndTag, text);
  return status == Status::kWhole ? skip(">\n", text) : status;
}

}  // namespace

ToolCallRead read_tool_call(std::string_view text) {
  ToolCallRead result;
  std::string_view rest = text;
  result.status = skip(markup::kInvokeTag, rest);
  if (result.status == Status::kWhole) result.status = read_name(rest, result.call.name);
  if (result.status == Status::kWhole) result.status = read_arguments(rest, result.call.arguments);
  result.num_bytes = text.size() - rest.size();
  return result;
}

}  // namespace fathom::text
