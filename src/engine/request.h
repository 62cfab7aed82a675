// What the engine is asked, and what it answers, token by token.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/sampler.h"

namespace fathom::engine {

// Narrows what may be sampled next, for answers that must follow a grammar. One request's
// are called in turns, from any of the engine's threads, different requests' at once; `allowed`
// must leave at least one token.
struct TokenConstraint {
  // A bit a token, from the lowest of the first word; valid until `accept`.
  std::function<std::span<const uint64_t>()> allowed;
  std::function<void(int32_t id)> accept;
};

struct Request {
  std::vector<int32_t> prompt;  // at least one token
  SamplingOptions sampling;
  int max_tokens = 256;                 // at least 1; the context's end may come first
  std::vector<int32_t> stop_token_ids;  // generation ends after one of these
  std::optional<TokenConstraint> constraint = {};
  bool record = false;  // fill RequestEvent::record; the prompt is computed anew, for its routing
};

enum class FinishReason {
  kStop,       // a stop token was sampled (it is the last token reported)
  kLength,     // max_tokens or the end of the context
  kCancelled,  // cancel() or the engine's shutdown
  kFailed,     // of no fault of the request; see RequestEvent::error
  kRefused,    // the request's own constraint cannot be followed; see RequestEvent::error
};

// What reinforcement learning needs to compute the sampler's policy again (V3.2 report, section
// 3.1: keep routing, keep sampling mask).
struct TokenRecord {
  float sampler_logprob = 0;  // with which the token was drawn: after temperature and truncation
  std::vector<int32_t> sampling_mask = {};  // ids that could be drawn; empty: all
  // The experts, ascending, of each position that was computed since the last token: positions one
  // behind another, in each the MoE layers, in each num_experts_per_tok ids. The prompt's come with
  // the first token. The last token of an answer is never computed and has none.
  std::vector<int32_t> routed_experts = {};
  int64_t num_moe_layers = 0;
};

// Every field has a default; set what the event has.
struct RequestEvent {
  bool has_token = false;
  TokenLogprob token = {};
  std::vector<TokenLogprob> top_logprobs = {};  // num_top_logprobs of them, best first
  std::optional<TokenRecord> record = {};
  int64_t num_cached_tokens = 0;  // of the prompt, found in the prefix cache
  bool is_finished = false;       // the last event of a request
  FinishReason finish_reason = FinishReason::kStop;
  std::string error = {};
};

// Called on the engine's thread, in order; must return quickly and not throw.
using EventCallback = std::function<void(const RequestEvent&)>;

}  // namespace fathom::engine
