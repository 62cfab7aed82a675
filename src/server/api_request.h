// What a request to /v1/chat/completions or /v1/completions asks for, checked field by field.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "engine/sampler.h"
#include "text/chat_format.h"
#include "text/grammar.h"

namespace fathom::server {

struct ApiRequest {
  bool is_chat = false;
  std::string prompt;  // text as the model sees it, special tokens written out
  text::ThinkingMode thinking_mode = text::ThinkingMode::kChat;
  engine::SamplingOptions sampling;
  std::optional<int> max_tokens;  // none: up to the context's end for chat, 16 for completions
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  std::shared_ptr<const text::Grammar> grammar = {};  // that the answer follows, if any
  bool is_stream = false;
  bool include_usage = false;
  bool echo = false;
  bool record = false;                 // "rl_record": what a trainer needs of each token
  std::vector<int32_t> prompt_tokens;  // instead of `prompt`, if there are any
};

struct ApiRequestOptions {
  // DeepSeek answers 400 if an assistant message of the running tool turn lacks reasoning_content;
  // lenient takes it as empty.
  bool is_strict_reasoning = false;
  engine::SamplingOptions sampling = {};     // where a request does not say otherwise
  std::vector<int32_t> stop_token_ids = {};  // of every request
};

// Parses a body of JSON. Throws ApiError (400) if it is none, or nests deeper than 128 levels.
Json parse_request_body(std::string_view text);

// Throw ApiError naming the field. Fields that cannot be honoured are refused; unknown ones are
// ignored, as clients send many.
ApiRequest parse_chat_request(const Json& body, const ApiRequestOptions& options);
ApiRequest parse_completion_request(const Json& body, const ApiRequestOptions& options);

}  // namespace fathom::server
