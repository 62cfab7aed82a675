#include "text/chat_format.h"

#include <algorithm>

#include "base/check.h"
#include "text/chat_markup.h"
#include "text/python_json.h"
#include "text/tool_call.h"

namespace fathom::text {
namespace {

std::string role_of(const Json& message, const std::string& where) {
  if (!message.is_object() || !message.contains("role") || !message["role"].is_string())
    fail("{}: expected an object with a \"role\"", where);
  const std::string role = message["role"];
  for (const char* known : {"system", "developer", "user", "assistant", "tool"})
    if (role == known) return role;
  fail("{}.role: \"{}\" is not known; expected system, developer, user, assistant or tool", where,
       role);
}

// A text field; absent and null are empty.
std::string text_of(const Json& message, const char* field, const std::string& where) {
  if (!message.contains(field) || message[field].is_null()) return "";
  if (!message[field].is_string())
    fail("{}.{}: expected a string, not {}", where, field, message[field].type_name());
  return message[field];
}

std::string render_tools(const Json& tools, const std::string& where) {
  if (!tools.is_array()) fail("{}.tools: expected an array", where);
  std::string lines;
  for (const Json& tool : tools) {
    if (!tool.is_object() || !tool.contains("function"))
      fail("{}.tools: expected objects with a \"function\"", where);
    lines += (lines.empty() ? "" : "\n") + python_json(tool["function"]);
  }
  return std::string(markup::kToolsBefore) + lines + std::string(markup::kToolsAfter);
}

// Whether there is more than what Python takes for false.
bool has(const Json& message, const char* field) {
  if (!message.contains(field)) return false;
  const Json& value = message[field];
  return !value.empty() && value != "" && value != false && value != 0;
}

// Tools and response format as they follow a system text or open a developer's.
std::string render_extras(const Json& message, const std::string& where) {
  std::string out;
  if (has(message, "tools")) out += "\n\n" + render_tools(message["tools"], where);
  if (has(message, "response_format"))
    out += "\n\n" + std::string(markup::kResponseFormat) + python_json(message["response_format"]);
  return out;
}

std::string render_call(const Json& call, const std::string& where) {
  const Json* function = call.is_object() && call.contains("function") ? &call["function"] : &call;
  if (!function->is_object() || !function->contains("name") || !(*function)["name"].is_string())
    fail("{}.tool_calls: expected objects with function.name", where);
  const std::string name = (*function)["name"];
  Json arguments = Json::object();
  if (function->contains("arguments")) {
    const Json& given = (*function)["arguments"];
    arguments = given.is_string()
                    ? parse_json_exactly(given.get<std::string>(), where + ".tool_calls: arguments")
                    : given;
  }
  if (!arguments.is_object())
    fail("{}.tool_calls: arguments of {} must be a JSON object", where, name);
  std::string parameters;
  for (const auto& [key, value] : arguments.items()) {
    parameters +=
        fmt::format("{}<｜DSML｜parameter name=\"{}\" string=\"{}\">{}</｜DSML｜parameter>",
                    parameters.empty() ? "" : "\n", key, value.is_string() ? "true" : "false",
                    value.is_string() ? value.get<std::string>() : python_json(value));
  }
  return fmt::format("<｜DSML｜invoke name=\"{}\">\n{}\n</｜DSML｜invoke>", name, parameters);
}

// All messages with what is common to their rendering.
class Encoder {
 public:
  Encoder(const Json& messages, const ChatOptions& options)
      : options_(options), is_thinking_(options.thinking_mode == ThinkingMode::kThinking) {
    if (!messages.is_array()) fail("messages: expected an array");
    all_ = options.context;
    for (const Json& message : messages) all_.push_back(message);
    for (size_t i = 0; i < all_.size(); ++i) {
      roles_.push_back(role_of(all_[i], where(i)));
      if (roles_[i] == "user" || roles_[i] == "developer") last_user_ = static_cast<int64_t>(i);
    }
    if (is_thinking_ && options.drop_thinking) refuse_early_developers();
  }

  std::string encode() const {
    std::string out;
    if (options_.add_default_bos_token && options_.context.empty()) out = markup::kBos;
    for (size_t i = options_.context.size(); i < all_.size(); ++i) out += render(i);
    return out;
  }

 private:
  std::string where(size_t i) const {
    const size_t num_context = options_.context.size();
    return i < num_context ? fmt::format("options.context[{}]", i)
                           : fmt::format("messages[{}]", i - num_context);
  }

  // The published encoder loses its place over these.
  void refuse_early_developers() const {
    for (size_t i = 0; static_cast<int64_t>(i) < last_user_; ++i)
      if (roles_[i] == "developer")
        fail(
            "{}.role: a developer message before the last user message cannot be encoded with "
            "drop_thinking",
            where(i));
  }

  std::string render(size_t i) const {
    const std::string& role = roles_[i];
    if (role == "system")
      return text_of(all_[i], "content", where(i)) + render_extras(all_[i], where(i));
    if (role == "user") return render_user(text_of(all_[i], "content", where(i)), i);
    if (role == "developer") return render_developer(i);
    if (role == "assistant") return render_assistant(i);
    return render_tool(i);
  }

  bool thinks_from(size_t i) const { return is_thinking_ && static_cast<int64_t>(i) >= last_user_; }

  std::string render_user(const std::string& content, size_t i) const {
    const bool thinks = is_thinking_ && static_cast<int64_t>(i) == last_user_;
    return fmt::format("{}{}{}{}", markup::kUser, content, markup::kAssistant,
                       thinks ? markup::kThink : markup::kThinkEnd);
  }

  std::string render_developer(size_t i) const {
    const std::string content = text_of(all_[i], "content", where(i));
    if (content.empty()) fail("{}.content: a developer message needs content", where(i));
    return render_user(render_extras(all_[i], where(i)) + "\n\n# The user's message is: " + content,
                       i);
  }

  std::string render_assistant(size_t i) const {
    const Json& message = all_[i];
    const std::string reasoning = text_of(message, "reasoning_content", where(i));
    const bool has_calls = has(message, "tool_calls");
    std::string out;
    if (is_thinking_ && static_cast<int64_t>(i) > last_user_) {
      if (reasoning.empty() && !has_calls)
        fail(
            "{}: an assistant message after the last user message needs "
            "reasoning_content or tool_calls in thinking mode",
            where(i));
      out = reasoning + std::string(markup::kThinkEnd);
    }
    out += text_of(message, "content", where(i));
    if (has_calls) {
      out += markup::kCallsOpen;
      for (const Json& call : message["tool_calls"]) out += render_call(call, where(i)) + "\n";
      out += markup::kCallsClose;
    }
    return out + std::string(markup::kEos);
  }

  std::string render_tool(size_t i) const {
    size_t caller = i;
    while (caller > 0 && roles_[caller] == "tool") --caller;
    const Json& calls = all_[caller].contains("tool_calls") ? all_[caller]["tool_calls"] : Json();
    const size_t order = i - caller;
    if (roles_[caller] != "assistant" || !calls.is_array() || calls.size() < order)
      fail(
          "{}: this tool result answers no tool call; expected an assistant message with "
          "at least {} tool_calls before it",
          where(i), std::max<size_t>(order, 1));
    std::string out;
    if (order == 1) out += "\n\n<function_results>";
    out += "\n<result>" + text_of(all_[i], "content", where(i)) + "</result>";
    if (order == calls.size())
      out += fmt::format("\n</function_results>\n\n{}",
                         thinks_from(i) ? markup::kThink : markup::kThinkEnd);
    return out;
  }

  const ChatOptions& options_;
  bool is_thinking_;
  Json all_ = Json::array();
  std::vector<std::string> roles_;
  int64_t last_user_ = -1;
};

size_t find_or_end(std::string_view text, std::string_view what) {
  return std::min(text.find(what), text.size());
}

void refuse_markers(std::string_view text, const char* part) {
  for (std::string_view marker :
       {markup::kBos, markup::kEos, markup::kThink, markup::kThinkEnd, markup::kDsml})
    if (text.find(marker) != std::string_view::npos)
      fail("the completion's {} holds {}", part, marker);
}

}  // namespace

ChatOptions parse_chat_options(const Json& options) {
  if (!options.is_object()) fail("options: expected an object");
  ChatOptions result;
  for (const auto& [key, value] : options.items()) {
    if (key == "thinking_mode" && (value == "thinking" || value == "chat"))
      result.thinking_mode = value == "chat" ? ThinkingMode::kChat : ThinkingMode::kThinking;
    else if (key == "drop_thinking" && value.is_boolean())
      result.drop_thinking = value;
    else if (key == "add_default_bos_token" && value.is_boolean())
      result.add_default_bos_token = value;
    else if (key == "context" && (value.is_array() || value.is_null()))
      result.context = value.is_null() ? Json::array() : value;
    else
      fail(
          "options.{}: {} is not understood; expected thinking_mode (\"thinking\" or \"chat\"), "
          "drop_thinking, add_default_bos_token (true or false) or context (messages)",
          key, value.dump());
  }
  return result;
}

std::string encode_messages(const Json& messages, const ChatOptions& options) {
  return Encoder(messages, options).encode();
}

Json parse_message(std::string_view text, ThinkingMode mode) {
  std::string reasoning;
  if (mode == ThinkingMode::kThinking) {
    const size_t end = text.find(markup::kThinkEnd);
    if (end == std::string_view::npos || find_or_end(text, markup::kCallsTag) < end)
      fail("the completion has no </think>");
    reasoning = text.substr(0, end);
    text.remove_prefix(end + markup::kThinkEnd.size());
  }
  const size_t calls_begin = find_or_end(text, markup::kCallsTag);
  const size_t eos = find_or_end(text, markup::kEos);
  const std::string_view content = text.substr(0, std::min(calls_begin, eos));
  Json calls = Json::array();
  if (calls_begin < eos) {
    text.remove_prefix(calls_begin);
    if (!text.starts_with(markup::kCallsOpen))
      fail("the tool calls do not open with \">\" and a new line");
    text.remove_prefix(markup::kCallsOpen.size());
    while (!text.starts_with(markup::kCallsClose)) {
      const ToolCallRead read = read_tool_call(text);
      if (read.status != ToolCallRead::Status::kWhole)
        fail("tool call {} of the completion is {}", calls.size() + 1,
             read.status == ToolCallRead::Status::kMalformed ? "malformed" : "not closed");
      calls.push_back(
          {{"type", "function"},
           {"function", {{"name", read.call.name}, {"arguments", read.call.arguments}}}});
      text.remove_prefix(read.num_bytes);
    }
    text.remove_prefix(markup::kCallsClose.size());
    if (!text.empty() && text != markup::kEos) fail("text follows the tool calls");
  } else if (eos == text.size() || text.substr(eos) != markup::kEos) {
    fail("the completion does not end with {}", markup::kEos);
  }
  refuse_markers(content, "content");
  refuse_markers(reasoning, "reasoning");
  return {{"role", "assistant"},
          {"content", std::string(content)},
          {"reasoning_content", reasoning},
          {"tool_calls", calls}};
}

}  // namespace fathom::text
