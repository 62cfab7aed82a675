// Bodies and stream chunks of the completions APIs, in DeepSeek's form.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "server/api_request.h"
#include "server/generation.h"
#include "text/streaming_chat_parser.h"

namespace fathom::server {

// Builds the answer to one request from its pieces, as one body or as a stream of chunks.
class ApiResponse {
 public:
  ApiResponse(const ApiRequest& request, const text::Tokenizer& tokenizer, std::string model);

  // Chunks for a piece; empty if it brought nothing to show.
  std::vector<Json> add(const Piece& piece);
  // Last chunks, the finish reason and usage in the first of them.
  std::vector<Json> finish(const Generation& generation);
  // The whole answer, after finish().
  Json body() const;

 private:
  std::vector<Json> add_delta(const text::ChatDelta& delta, const Json& logprobs);
  Json chunk(Json choice) const;
  Json logprobs_of(const Piece& piece);
  Json completion_logprobs(const Piece& piece);
  Json record_json(const std::vector<int32_t>& prompt_tokens) const;

  ApiRequest request_;
  text::Tokenizer tokenizer_;
  std::string model_, id_;
  int64_t created_;
  text::StreamingChatParser parser_;
  bool is_first_chunk_ = true;
  bool is_in_reasoning_;
  int64_t num_reasoning_tokens_ = 0;
  std::string content_, reasoning_, finish_reason_;
  Json tool_calls_ = Json::array();
  Json logprobs_ = Json();
  text::StreamingDecoder offsets_;  // of the tokens, whatever of their text is held back
  size_t num_characters_ = 0;       // decoded by it, after the echoed prompt
  std::vector<engine::TokenRecord> records_;
  std::vector<int32_t> token_ids_;
  Json record_;
  Json usage_;
};

// {"token", "logprob", "bytes"}
Json token_json(const text::Tokenizer& tokenizer, const engine::TokenLogprob& token);

}  // namespace fathom::server
