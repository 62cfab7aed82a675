#include "server/api_request.h"

#include <charconv>
#include <map>
#include <random>

#include "server/api_error.h"
#include "text/answer_grammar.h"

namespace fathom::server {
namespace {

constexpr size_t kMostStops = 16;
constexpr size_t kMostStopBytes = 1024;
constexpr size_t kMostBiases = 1024;
constexpr int kMostLevels = 128;
constexpr size_t kMostShownBytes = 64;

[[noreturn]] void bad(const std::string& field, const std::string& what) {
  throw ApiError(400, field + " " + what, field);
}

const Json* find(const Json& body, const char* field) {
  const auto it = body.find(field);
  return it == body.end() || it->is_null() ? nullptr : &*it;
}

// A value in a message, cut where it is long.
std::string shown(const Json& value) {
  const std::string text = value.dump(-1, ' ', true);
  return text.size() <= kMostShownBytes ? text : text.substr(0, kMostShownBytes) + "...";
}

// A text field, if the object has one.
const std::string* text_at(const Json& object, const char* field) {
  const auto it = object.is_object() ? object.find(field) : object.end();
  return it != object.end() && it->is_string() ? &it->get_ref<const std::string&>() : nullptr;
}

std::string type_of(const Json& object) {
  const std::string* type = text_at(object, "type");
  return type ? *type : "";
}

// Copying and printing JSON recurse: deep nesting would overflow the stack.
void check_levels(std::string_view json, const std::string& what, const std::string& field) {
  int levels = 0;
  bool is_string = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (c == '"') is_string = !is_string;
    if (is_string && c == '\\') ++i;
    if (is_string) continue;
    if (c == '[' || c == '{') ++levels;
    if (c == ']' || c == '}') --levels;
    if (levels > kMostLevels)
      throw ApiError(400, fmt::format("{}: nests deeper than {} levels", what, kMostLevels), field);
  }
}

// Arguments are JSON within a string, parsed on their own.
void check_arguments(const Json& message, size_t index) {
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || !calls->is_array()) return;
  for (const Json& call : *calls) {
    const Json function = call.is_object() ? call.value("function", Json()) : Json();
    const Json arguments = function.is_object() ? function.value("arguments", Json()) : Json();
    if (arguments.is_string())
      check_levels(arguments.get_ref<const std::string&>(),
                   fmt::format("messages[{}].tool_calls: arguments", index), "messages");
  }
}

double number(const Json& body, const char* field, double otherwise) {
  const Json* value = find(body, field);
  if (!value) return otherwise;
  if (!value->is_number()) bad(field, "is " + shown(*value) + "; expected a number");
  return value->get<double>();
}

std::optional<int64_t> integer(const Json& body, const char* field) {
  const Json* value = find(body, field);
  if (!value) return {};
  if (value->is_number_float() && std::abs(value->get<double>()) >= 0x1p63)
    bad(field, "is " + shown(*value) + "; expected an integer of less than 2^63");
  if (!value->is_number_integer()) bad(field, "is " + shown(*value) + "; expected an integer");
  return value->get<int64_t>();
}

bool boolean(const Json& body, const char* field, bool otherwise = false) {
  const Json* value = find(body, field);
  if (value && !value->is_boolean()) bad(field, "is " + shown(*value) + "; expected true or false");
  return value ? value->get<bool>() : otherwise;
}

std::map<int32_t, double> read_logit_bias(const Json& body) {
  std::map<int32_t, double> result;
  const Json* value = find(body, "logit_bias");
  if (!value) return result;
  if (!value->is_object()) bad("logit_bias", "must be an object of token ids and numbers");
  if (value->size() > kMostBiases)
    bad("logit_bias",
        fmt::format("holds {} tokens; expected at most {}", value->size(), kMostBiases));
  for (const auto& [key, bias] : value->items()) {
    int32_t id = 0;
    const auto end = std::from_chars(key.data(), key.data() + key.size(), id);
    if (end.ec != std::errc() || end.ptr != key.data() + key.size() || !bias.is_number())
      bad("logit_bias", "must be an object of token ids and numbers");
    result[id] = bias.get<double>();
  }
  return result;
}

void read_sampling(const Json& body, ApiRequest& request) {
  engine::SamplingOptions& sampling = request.sampling;
  sampling.temperature = number(body, "temperature", sampling.temperature);
  sampling.top_p = number(body, "top_p", sampling.top_p);
  const int64_t top_k = integer(body, "top_k").value_or(sampling.top_k);
  if (top_k < 0 || top_k > INT32_MAX)
    bad("top_k", fmt::format("is {}; expected at least 0 (0 is off)", top_k));
  sampling.top_k = static_cast<int>(top_k);
  sampling.min_p = number(body, "min_p", sampling.min_p);
  sampling.presence_penalty = number(body, "presence_penalty", 0);
  sampling.frequency_penalty = number(body, "frequency_penalty", 0);
  sampling.logit_bias = read_logit_bias(body);
  const auto seed = integer(body, "seed");
  sampling.seed = seed ? static_cast<uint64_t>(*seed) : std::random_device{}();
  try {
    engine::validate(sampling);
  } catch (const Error& error) {
    const std::string what = error.what();
    throw ApiError(400, what, what.substr(0, what.find(' ')));
  }
}

void read_max_tokens(const Json& body, ApiRequest& request) {
  for (const char* field : {"max_tokens", "max_completion_tokens"}) {
    const auto value = integer(body, field);
    if (!value) continue;
    if (*value < 1 || *value > INT32_MAX)
      bad(field, "is " + shown(*find(body, field)) + "; expected 1 to 2147483647");
    request.max_tokens = static_cast<int>(*value);
  }
}

void read_stop(const Json& body, ApiRequest& request) {
  const Json* value = find(body, "stop");
  if (!value) return;
  const Json list = value->is_array() ? *value : Json::array({*value});
  if (list.size() > kMostStops)
    bad("stop", fmt::format("holds {} strings; expected at most {}", list.size(), kMostStops));
  for (const Json& stop : list) {
    if (!stop.is_string() || stop.get_ref<const std::string&>().empty())
      bad("stop", "must be a string or an array of strings, none of them empty");
    if (stop.get_ref<const std::string&>().size() > kMostStopBytes)
      bad("stop", fmt::format("holds a string of {} bytes; expected at most {}",
                              stop.get_ref<const std::string&>().size(), kMostStopBytes));
    request.stop.push_back(stop);
  }
}

std::vector<int32_t> token_ids(const Json& list, const char* field) {
  std::vector<int32_t> ids;
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX)
      bad(field, "holds " + shown(id) + "; expected token ids");
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

void read_stop_token_ids(const Json& body, const ApiRequestOptions& options, ApiRequest& request) {
  request.stop_token_ids = options.stop_token_ids;
  const Json* list = find(body, "stop_token_ids");
  if (!list) return;
  if (!list->is_array() || list->size() > kMostStops)
    bad("stop_token_ids", fmt::format("must be an array of at most {} token ids", kMostStops));
  for (const int32_t id : token_ids(*list, "stop_token_ids")) request.stop_token_ids.push_back(id);
}

void read_common(const Json& body, const ApiRequestOptions& options, ApiRequest& request) {
  if (!body.is_object()) throw ApiError(400, "the request body must be a JSON object");
  request.sampling = options.sampling;
  read_sampling(body, request);
  read_max_tokens(body, request);
  read_stop(body, request);
  read_stop_token_ids(body, options, request);
  request.is_stream = boolean(body, "stream");
  if (const Json* stream = find(body, "stream_options")) {
    if (!stream->is_object()) bad("stream_options", "must be an object");
    request.include_usage = boolean(*stream, "include_usage");
  }
  request.record = boolean(body, "rl_record");
  if (request.record && request.is_stream) bad("rl_record", "cannot be streamed");
  if (integer(body, "n").value_or(1) != 1) bad("n", "must be 1; send several requests instead");
}

void read_thinking(const Json& body, ApiRequest& request) {
  const Json* thinking = find(body, "thinking");
  if (!thinking) return;
  const std::string type = type_of(*thinking);
  if (type != "enabled" && type != "disabled")
    bad("thinking", "must be {\"type\": \"enabled\"} or {\"type\": \"disabled\"}");
  if (type == "enabled") request.thinking_mode = text::ThinkingMode::kThinking;
}

// What the request says of tools and of the answer's form; null where it says nothing.
struct AnswerFields {
  const Json* tools = nullptr;
  const Json* response_format = nullptr;
  text::AnswerFormat format;
};

// tool_choice: "none", "auto", "required", or the one function to call.
void read_tool_choice(const Json& body, AnswerFields& fields) {
  const Json* choice = find(body, "tool_choice");
  if (!choice || *choice == "auto") return;
  if (*choice == "none") {
    fields.tools = nullptr;
    return;
  }
  const bool is_named = type_of(*choice) == "function" && choice->contains("function") &&
                        choice->at("function").is_object() &&
                        choice->at("function").contains("name");
  if (*choice != "required" && !is_named)
    bad("tool_choice",
        "is " + shown(*choice) +
            "; expected \"auto\", \"none\", \"required\" or {\"type\": \"function\", "
            "\"function\": {\"name\": ...}}");
  if (!fields.tools) bad("tool_choice", "asks for a call, but there are no tools");
  fields.format.kind = text::AnswerFormat::Kind::kCalls;
  if (!is_named) return;
  const Json& name = choice->at("function").at("name");
  Json chosen = Json::array();
  for (const Json& tool : *fields.tools)
    if (tool.is_object() && tool.contains("function") && tool.at("function").is_object() &&
        tool.at("function").value("name", Json()) == name)
      chosen.push_back(tool);
  if (chosen.empty()) bad("tool_choice", "names " + shown(name) + ", which is none of the tools");
  fields.format.tools = std::move(chosen);
}

void read_response_format(const Json& body, AnswerFields& fields) {
  const Json* given = find(body, "response_format");
  if (!given) return;
  const std::string type = type_of(*given);
  if (type != "text" && type != "json_object" && type != "json_schema")
    bad("response_format",
        "must be an object with a \"type\" of \"text\", \"json_object\" or \"json_schema\"");
  if (type == "text") return;
  if (fields.format.kind == text::AnswerFormat::Kind::kCalls)
    bad("response_format", "cannot be kept where tool_choice asks for a call");
  fields.response_format = given;
  fields.format.kind = text::AnswerFormat::Kind::kJson;
  if (type == "json_object") return;
  const Json* schema = find(*given, "json_schema");
  if (!schema || !schema->is_object() || !find(*schema, "schema"))
    bad("response_format", "of type json_schema needs json_schema.schema");
  fields.format.schema = schema->at("schema");
  fields.format.is_strict = boolean(*schema, "strict");
}

AnswerFields read_answer_fields(const Json& body, const ApiRequest& request) {
  AnswerFields fields;
  fields.format.thinking_mode = request.thinking_mode;
  if (const Json* tools = find(body, "tools")) {
    if (!tools->is_array()) bad("tools", "must be an array");
    if (!tools->empty()) fields.tools = tools;
  }
  fields.format.allows_many_calls = boolean(body, "parallel_tool_calls", true);
  read_tool_choice(body, fields);
  if (fields.tools && fields.format.tools.empty()) fields.format.tools = *fields.tools;
  read_response_format(body, fields);
  return fields;
}

// None where any text will do.
std::shared_ptr<const text::Grammar> grammar_of(const AnswerFields& fields) {
  if (!fields.tools && !fields.response_format) return {};
  try {
    return std::make_shared<const text::Grammar>(text::answer_grammar(fields.format));
  } catch (const Error& error) {
    const std::string what = error.what();
    throw ApiError(400, what, what.starts_with("tools") ? "tools" : "response_format");
  }
}

// Request-level tools and response format belong to the first system message.
Json with_tools(const AnswerFields& fields, Json messages) {
  if (!fields.tools && !fields.response_format) return messages;
  size_t at = 0;
  while (at < messages.size() && messages[at].value("role", "") != "system") ++at;
  if (at == messages.size()) {
    messages.insert(messages.begin(), Json{{"role", "system"}, {"content", ""}});
    at = 0;
  }
  if (fields.tools) messages[at]["tools"] = *fields.tools;
  if (fields.response_format) messages[at]["response_format"] = *fields.response_format;
  return messages;
}

// Content given as parts becomes their text.
void flatten_content(Json& message, size_t index) {
  if (!message.contains("content") || !message["content"].is_array()) return;
  std::string content;
  for (const Json& part : message["content"]) {
    if (type_of(part) != "text" || !part.contains("text") || !part["text"].is_string())
      throw ApiError(
          400,
          fmt::format("messages[{}].content: only parts of type \"text\" are supported", index),
          "messages");
    content += part["text"].get<std::string>();
  }
  message["content"] = content;
}

void check_reasoning(Json& messages, const ApiRequestOptions& options) {
  size_t last_user = 0;
  for (size_t i = 0; i < messages.size(); ++i)
    if (messages[i].value("role", "") == "user") last_user = i;
  for (size_t i = last_user; i < messages.size(); ++i) {
    Json& message = messages[i];
    if (message.value("role", "") != "assistant" || message.contains("reasoning_content")) continue;
    if (options.is_strict_reasoning)
      throw ApiError(
          400, fmt::format("Missing `reasoning_content` field in the assistant message at message "
                           "index {}. For more information, please refer to "
                           "https://api-docs.deepseek.com/guides/thinking_mode#tool-calls",
                           i));
    message["reasoning_content"] = "";
  }
}

// Results stand in the prompt without their calls' ids, so they must come in the calls' order.
// Where an id is missing, the order given counts.
void order_results(Json& messages) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const Json calls = messages[i].value("tool_calls", Json());
    if (!calls.is_array() || calls.empty()) continue;
    std::map<std::string, size_t> place_of;
    for (size_t call = 0; call < calls.size(); ++call)
      if (const std::string* id = text_at(calls[call], "id")) place_of.emplace(*id, call);
    if (place_of.size() != calls.size()) continue;
    std::map<size_t, Json> results;
    size_t end = i + 1;
    for (; end < messages.size() && messages[end].value("role", "") == "tool"; ++end) {
      const std::string* id = text_at(messages[end], "tool_call_id");
      if (!id) break;
      const auto place = place_of.find(*id);
      if (place == place_of.end())
        throw ApiError(400,
                       fmt::format("messages[{}].tool_call_id is {}; expected the id of a call of "
                                   "messages[{}]",
                                   end, shown(*id), i),
                       "messages");
      if (!results.emplace(place->second, messages[end]).second)
        throw ApiError(
            400, fmt::format("messages[{}].tool_call_id is {}, a second result", end, shown(*id)),
            "messages");
    }
    if (end < messages.size() && messages[end].value("role", "") == "tool") continue;
    size_t at = i + 1;
    for (auto& [unused, result] : results) messages[at++] = std::move(result);
  }
}

// Text, or token ids as they are.
void read_prompt(const Json& body, ApiRequest& request) {
  const Json* prompt = find(body, "prompt");
  if (prompt && prompt->is_string()) {
    request.prompt = prompt->get<std::string>();
    return;
  }
  if (!prompt || !prompt->is_array() || prompt->empty())
    bad("prompt", "must be a string or an array of token ids");
  request.prompt_tokens = token_ids(*prompt, "prompt");
}

}  // namespace

Json parse_request_body(std::string_view text) {
  check_levels(text, "the request body", "");
  try {
    return base::parse_json(text, "the request body");
  } catch (const Error& error) {
    throw ApiError(400, error.what());
  }
}

ApiRequest parse_chat_request(const Json& body, const ApiRequestOptions& options) {
  ApiRequest request;
  request.is_chat = true;
  read_common(body, options, request);
  read_thinking(body, request);
  request.sampling.logprobs = boolean(body, "logprobs");
  const int64_t top = integer(body, "top_logprobs").value_or(0);
  if (top < 0 || top > 20) bad("top_logprobs", fmt::format("is {}; expected 0 to 20", top));
  if (top > 0 && !request.sampling.logprobs) bad("top_logprobs", "needs logprobs to be true");
  request.sampling.num_top_logprobs = static_cast<int>(top);
  const Json* given = find(body, "messages");
  if (!given || !given->is_array() || given->empty())
    bad("messages", "must be an array of at least one message");
  Json messages = *given;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object())
      throw ApiError(400, fmt::format("messages[{}] must be an object", i), "messages");
    if (messages[i].contains("role") && !messages[i]["role"].is_string())
      throw ApiError(400, fmt::format("messages[{}].role must be a string", i), "messages");
    if (boolean(messages[i], "prefix"))
      throw ApiError(
          400,
          fmt::format("messages[{}].prefix: an answer that goes on with a given beginning "
                      "is not supported; /v1/completions takes any text",
                      i),
          "messages");
    check_arguments(messages[i], i);
    flatten_content(messages[i], i);
  }
  order_results(messages);
  if (request.thinking_mode == text::ThinkingMode::kThinking) check_reasoning(messages, options);
  text::ChatOptions chat;
  chat.thinking_mode = request.thinking_mode;
  const AnswerFields fields = read_answer_fields(body, request);
  request.grammar = grammar_of(fields);
  try {
    request.prompt = text::encode_messages(with_tools(fields, std::move(messages)), chat);
  } catch (const ApiError&) {
    throw;
  } catch (const Error& error) {
    throw ApiError(400, error.what(), "messages");
  }
  return request;
}

ApiRequest parse_completion_request(const Json& body, const ApiRequestOptions& options) {
  ApiRequest request;
  read_common(body, options, request);
  if (!request.max_tokens) request.max_tokens = 16;
  read_prompt(body, request);
  request.echo = boolean(body, "echo");
  if (request.echo && !request.prompt_tokens.empty())
    bad("echo", "needs a prompt of text, not of token ids");
  if (find(body, "suffix")) bad("suffix", "is not supported");
  if (request.echo && find(body, "logprobs"))
    bad("logprobs", "of the prompt are not supported; leave out echo or logprobs");
  if (const auto top = integer(body, "logprobs")) {
    if (*top < 0 || *top > 20) bad("logprobs", fmt::format("is {}; expected 0 to 20", *top));
    request.sampling.logprobs = true;
    request.sampling.num_top_logprobs = static_cast<int>(*top);
  }
  return request;
}

}  // namespace fathom::server
