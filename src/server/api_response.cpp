#include "server/api_response.h"

#include <chrono>
#include <random>

#include "base/check.h"
#include "text/utf8.h"

namespace fathom::server {
namespace {

std::string new_id(const char* prefix) {
  thread_local std::mt19937_64 random(std::random_device{}());
  return fmt::format("{}{:016x}", prefix, random());
}

// The name of a token in the older API, where it is a key: a part of a character has no text.
std::string token_name(const text::Tokenizer& tokenizer, int32_t id) {
  const std::string& bytes = tokenizer.token_bytes(id);
  if (text::is_valid_utf8(bytes)) return bytes;
  std::string name = "bytes:";
  for (const char byte : bytes) name += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
  return name;
}

Json or_null(const std::string& text) { return text.empty() ? Json() : Json(text); }

}  // namespace

Json token_json(const text::Tokenizer& tokenizer, const engine::TokenLogprob& token) {
  const std::string& bytes = tokenizer.token_bytes(token.id);
  text::StreamingDecoder decoder(tokenizer);
  std::string text = decoder.push(token.id);
  text += decoder.finish();
  Json values = Json::array();
  for (const char byte : bytes) values.push_back(static_cast<unsigned char>(byte));
  return {{"token", text}, {"logprob", token.logprob}, {"bytes", values}};
}

ApiResponse::ApiResponse(const ApiRequest& request, const text::Tokenizer& tokenizer,
                         std::string model)
    : request_(request),
      tokenizer_(tokenizer),
      model_(std::move(model)),
      id_(new_id(request.is_chat ? "chatcmpl-" : "cmpl-")),
      created_(std::chrono::duration_cast<std::chrono::seconds>(
                   std::chrono::system_clock::now().time_since_epoch())
                   .count()),
      parser_(request.thinking_mode),
      is_in_reasoning_(request.is_chat && request.thinking_mode == text::ThinkingMode::kThinking),
      offsets_(tokenizer) {
  if (request.echo) num_characters_ = text::count_code_points(request.prompt);
  if (request.sampling.logprobs)
    logprobs_ = request.is_chat ? Json{{"content", Json::array()}}
                                : Json{{"tokens", Json::array()},
                                       {"token_logprobs", Json::array()},
                                       {"top_logprobs", Json::array()},
                                       {"text_offset", Json::array()}};
}

Json ApiResponse::logprobs_of(const Piece& piece) {
  if (!request_.sampling.logprobs) return {};
  if (!request_.is_chat) return completion_logprobs(piece);
  Json token = token_json(tokenizer_, piece.token);
  token["top_logprobs"] = Json::array();
  for (const auto& top : piece.top_logprobs)
    token["top_logprobs"].push_back(token_json(tokenizer_, top));
  logprobs_["content"].push_back(token);
  return {{"content", Json::array({token})}};
}

Json ApiResponse::completion_logprobs(const Piece& piece) {
  Json top = Json::object();
  for (const auto& candidate : piece.top_logprobs)
    top[token_name(tokenizer_, candidate.id)] = candidate.logprob;
  const Json one = {{"tokens", {token_name(tokenizer_, piece.token.id)}},
                    {"token_logprobs", {piece.token.logprob}},
                    {"top_logprobs", {top}},
                    {"text_offset", {num_characters_}}};
  num_characters_ += text::count_code_points(offsets_.push(piece.token.id));
  for (const auto& [key, values] : one.items()) logprobs_[key].push_back(values[0]);
  return one;
}

// routed_experts: an array a position, prompt and answer but for its last token; in it an array a
// MoE layer.
Json ApiResponse::record_json(const std::vector<int32_t>& prompt_tokens) const {
  Json logprobs = Json::array(), masks = Json::array(), routed = Json::array();
  std::vector<int32_t> experts;
  for (const engine::TokenRecord& record : records_) {
    logprobs.push_back(record.sampler_logprob);
    masks.push_back(record.sampling_mask.empty() ? Json() : Json(record.sampling_mask));
    experts.insert(experts.end(), record.routed_experts.begin(), record.routed_experts.end());
  }
  const size_t num_positions = prompt_tokens.size() + token_ids_.size() - 1;
  const auto num_layers = static_cast<size_t>(records_.front().num_moe_layers);
  CHECK(num_layers == 0 || experts.size() % (num_positions * num_layers) == 0);
  const size_t width = num_layers == 0 ? 0 : experts.size() / (num_positions * num_layers);
  for (size_t position = 0; position < num_positions; ++position) {
    routed.push_back(Json::array());
    for (size_t layer = 0; layer < num_layers; ++layer) {
      const auto* begin = experts.data() + (position * num_layers + layer) * width;
      routed.back().push_back(std::vector<int32_t>(begin, begin + width));
    }
  }
  return {{"prompt_token_ids", prompt_tokens},
          {"token_ids", token_ids_},
          {"sampler_logprobs", logprobs},
          {"sampling_masks", masks},
          {"routed_experts", routed}};
}

Json ApiResponse::chunk(Json choice) const {
  choice["index"] = 0;
  if (!choice.contains("finish_reason")) choice["finish_reason"] = nullptr;
  return {{"id", id_},
          {"object", request_.is_chat ? "chat.completion.chunk" : "text_completion"},
          {"created", created_},
          {"model", model_},
          {"choices", Json::array({choice})},
          {"usage", nullptr}};
}

std::vector<Json> ApiResponse::add_delta(const text::ChatDelta& delta, const Json& logprobs) {
  reasoning_ += delta.reasoning_content;
  content_ += delta.content;
  if (!delta.content.empty() || !delta.tool_calls.empty()) is_in_reasoning_ = false;
  std::vector<Json> chunks;
  const auto emit = [&](Json message) {
    if (is_first_chunk_) message["role"] = "assistant";
    is_first_chunk_ = false;
    chunks.push_back(chunk({{"delta", std::move(message)}, {"logprobs", logprobs}}));
  };
  if (!delta.reasoning_content.empty())
    emit({{"content", nullptr}, {"reasoning_content", delta.reasoning_content}});
  if (!delta.content.empty()) emit({{"content", delta.content}});
  for (const auto& call : delta.tool_calls) {
    const Json full = {{"id", new_id("call_00_")},
                       {"type", "function"},
                       {"function", {{"name", call.name}, {"arguments", call.arguments}}}};
    tool_calls_.push_back(full);
    Json streamed = full;
    streamed["index"] = call.index;
    emit({{"tool_calls", Json::array({streamed})}});
  }
  // A token whose text is still held back, but whose log-probability is asked for.
  if (chunks.empty() && !logprobs.is_null()) emit({{"content", ""}});
  return chunks;
}

std::vector<Json> ApiResponse::add(const Piece& piece) {
  if (piece.record) {
    records_.push_back(*piece.record);
    token_ids_.push_back(piece.token.id);
  }
  const Json logprobs = piece.token.id == kNoToken ? Json() : logprobs_of(piece);
  if (request_.is_chat) {
    if (is_in_reasoning_ && piece.token.id != kNoToken) ++num_reasoning_tokens_;
    return add_delta(parser_.push(piece.text), logprobs);
  }
  std::string text = piece.text;
  if (is_first_chunk_ && request_.echo) text = request_.prompt + text;
  content_ += text;
  if (text.empty() && logprobs.is_null()) return {};
  is_first_chunk_ = false;
  return {chunk({{"text", text}, {"logprobs", logprobs}})};
}

std::vector<Json> ApiResponse::finish(const Generation& generation) {
  std::vector<Json> chunks;
  finish_reason_ = generation.finish_reason();
  const bool was_cut = finish_reason_ != "stop";
  if (request_.is_chat) chunks = add_delta(parser_.finish(was_cut), Json());
  if (!was_cut && !tool_calls_.empty()) finish_reason_ = "tool_calls";
  const int64_t prompt = generation.num_prompt_tokens(),
                completion = generation.num_completion_tokens(),
                cached = generation.num_cached_tokens();
  if (!records_.empty()) record_ = record_json(generation.prompt_tokens());
  usage_ = {{"prompt_tokens", prompt},
            {"completion_tokens", completion},
            {"total_tokens", prompt + completion},
            {"prompt_tokens_details", {{"cached_tokens", cached}}},
            {"completion_tokens_details", {{"reasoning_tokens", num_reasoning_tokens_}}},
            {"prompt_cache_hit_tokens", cached},
            {"prompt_cache_miss_tokens", prompt - cached}};
  Json last = request_.is_chat ? Json{{"delta", {{"content", ""}}}} : Json{{"text", ""}};
  if (request_.is_chat && is_first_chunk_) last["delta"]["role"] = "assistant";
  last["logprobs"] = nullptr;
  last["finish_reason"] = finish_reason_;
  chunks.push_back(chunk(last));
  chunks.back()["usage"] = usage_;
  if (request_.include_usage) {
    Json usage_chunk = chunks.back();
    usage_chunk["choices"] = Json::array();
    chunks.push_back(usage_chunk);
  }
  return chunks;
}

Json ApiResponse::body() const {
  Json choice = {{"index", 0}};
  if (request_.is_chat) {
    choice["message"] = {{"role", "assistant"},
                         {"content", tool_calls_.empty() ? Json(content_) : or_null(content_)}};
    if (request_.thinking_mode == text::ThinkingMode::kThinking)
      choice["message"]["reasoning_content"] = reasoning_;
    if (!tool_calls_.empty()) choice["message"]["tool_calls"] = tool_calls_;
  } else {
    choice["text"] = content_;
  }
  choice["logprobs"] = logprobs_;
  choice["finish_reason"] = finish_reason_;
  if (request_.record) choice["rl_record"] = record_;
  return {{"id", id_},
          {"object", request_.is_chat ? "chat.completion" : "text_completion"},
          {"created", created_},
          {"model", model_},
          {"choices", Json::array({choice})},
          {"usage", usage_}};
}

}  // namespace fathom::server
