// One request between text and the engine: prompt text in, pieces of answer text out.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "server/stop_matcher.h"
#include "text/grammar.h"
#include "text/token_constraint.h"
#include "text/tokenizer.h"

namespace fathom::server {

struct GenerationRequest {
  std::string prompt;                  // special tokens written out
  std::vector<int32_t> prompt_tokens;  // taken as they are instead, if there are any
  engine::SamplingOptions sampling;
  std::optional<int> max_tokens;  // none: to the end of the context
  std::vector<std::string> stop;
  std::string_view stops_until = {};    // the markup from which on stop strings do not count
  std::vector<int32_t> stop_token_ids;  // beside the end of the sentence
  std::shared_ptr<const text::Grammar> grammar = {};  // of the answer; none: any text
  bool record = false;                                // see engine::TokenRecord
};

// What one step brought: text (perhaps none), the token behind it.
inline constexpr int32_t kNoToken = -1;

struct Piece {
  std::string text;
  engine::TokenLogprob token;  // kNoToken: text of earlier tokens that had been withheld
  std::vector<engine::TokenLogprob> top_logprobs;
  std::optional<engine::TokenRecord> record = {};
};

class Generation {
 public:
  // Throws what Engine::submit throws. A prompt that does not begin with BOS gets one. `spellings`
  // is asked for where the request has a grammar.
  Generation(engine::Engine& engine, const text::Tokenizer& tokenizer,
             const GenerationRequest& request,
             const std::shared_ptr<const text::TokenSpellings>& spellings = {});
  ~Generation();  // cancels if it still runs
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  // Whether next() has something to say; waits for it for so long at most.
  bool wait(std::chrono::milliseconds most);
  // Blocks for the next piece; nothing at the end. Throws std::runtime_error if the engine
  // failed, no fault of the request, Error if the request's grammar cannot be followed, and
  // engine::Stopped if the engine stopped before the first token.
  std::optional<Piece> next();
  // Why it ended: "stop", "length" or, where the engine stopped in between, DeepSeek's
  // "insufficient_system_resource". Valid after next() has returned nothing.
  const std::string& finish_reason() const { return finish_reason_; }
  const std::vector<int32_t>& prompt_tokens() const { return prompt_tokens_; }
  int64_t num_prompt_tokens() const { return std::ssize(prompt_tokens_); }
  int64_t num_completion_tokens() const { return num_completion_tokens_; }
  // Of the prompt, found in the prefix cache. Valid after the first piece.
  int64_t num_cached_tokens() const { return num_cached_tokens_; }

 private:
  struct Queue {  // shared with the engine's callback, which may outlive this object
    std::mutex mutex;
    std::condition_variable filled;
    std::deque<engine::RequestEvent> events;
  };
  engine::RequestEvent wait_for_event();
  std::optional<Piece> last_piece(Piece piece);

  engine::Engine& engine_;
  text::Tokenizer tokenizer_;
  text::StreamingDecoder decoder_;
  StopMatcher stops_;
  std::shared_ptr<Queue> queue_ = std::make_shared<Queue>();
  engine::Engine::RequestId id_ = 0;
  std::vector<int32_t> ends_;  // tokens that end the answer and are no part of its text
  std::vector<int32_t> prompt_tokens_;
  int64_t num_completion_tokens_ = 0;
  int64_t num_cached_tokens_ = 0;
  bool is_over_ = false;
  std::string finish_reason_;
};

}  // namespace fathom::server
