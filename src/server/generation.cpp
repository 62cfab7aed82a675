#include "server/generation.h"

#include <algorithm>
#include <stdexcept>

#include "text/chat_markup.h"

namespace fathom::server {
namespace {

engine::TokenConstraint constraint_of(const std::shared_ptr<const text::TokenSpellings>& spellings,
                                      const std::shared_ptr<const text::Grammar>& grammar) {
  CHECK(spellings != nullptr);
  auto constraint = std::make_shared<text::TokenConstraint>(spellings, grammar);
  return {[constraint] { return constraint->allowed(); },
          [constraint](int32_t id) { constraint->accept(id); }};
}

const char* name_of(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kStop:
      return "stop";
    case engine::FinishReason::kLength:
      return "length";
    default:
      return "insufficient_system_resource";
  }
}

}  // namespace

Generation::Generation(engine::Engine& engine, const text::Tokenizer& tokenizer,
                       const GenerationRequest& request,
                       const std::shared_ptr<const text::TokenSpellings>& spellings)
    : engine_(engine),
      tokenizer_(tokenizer),
      decoder_(tokenizer),
      stops_(request.stop, request.stops_until) {
  engine::Request engine_request;
  prompt_tokens_ = request.prompt_tokens;
  if (prompt_tokens_.empty()) {
    prompt_tokens_ = tokenizer.encode(request.prompt);
    const auto bos = tokenizer.find(text::markup::kBos);
    if (bos && (prompt_tokens_.empty() || prompt_tokens_.front() != *bos))
      prompt_tokens_.insert(prompt_tokens_.begin(), *bos);
  }
  engine_request.prompt = prompt_tokens_;
  engine_request.record = request.record;
  ends_ = request.stop_token_ids;
  if (const auto eos = tokenizer.find(text::markup::kEos)) ends_.push_back(*eos);
  engine_request.stop_token_ids = ends_;
  engine_request.sampling = request.sampling;
  engine_request.max_tokens =
      request.max_tokens.value_or(static_cast<int>(engine.context_length()));
  if (request.grammar) engine_request.constraint = constraint_of(spellings, request.grammar);
  id_ =
      engine.submit(std::move(engine_request), [queue = queue_](const engine::RequestEvent& event) {
        const std::scoped_lock lock(queue->mutex);
        queue->events.push_back(event);
        queue->filled.notify_one();
      });
}

Generation::~Generation() {
  if (!is_over_) engine_.cancel(id_);
}

bool Generation::wait(std::chrono::milliseconds most) {
  std::unique_lock lock(queue_->mutex);
  return is_over_ || queue_->filled.wait_for(lock, most, [&] { return !queue_->events.empty(); });
}

engine::RequestEvent Generation::wait_for_event() {
  std::unique_lock lock(queue_->mutex);
  queue_->filled.wait(lock, [&] { return !queue_->events.empty(); });
  engine::RequestEvent event = std::move(queue_->events.front());
  queue_->events.pop_front();
  return event;
}

// Adds what the decoder and the matcher still hold, but for the beginning of a character that a
// limit has cut.
std::optional<Piece> Generation::last_piece(Piece piece) {
  is_over_ = true;
  if (finish_reason_ == "stop") piece.text += stops_.push(decoder_.finish());
  piece.text += stops_.finish();
  if (stops_.has_stopped()) finish_reason_ = "stop";
  return piece;
}

std::optional<Piece> Generation::next() {
  if (is_over_) return {};
  engine::RequestEvent event = wait_for_event();
  if (event.is_finished && event.finish_reason == engine::FinishReason::kFailed) {
    is_over_ = true;
    throw std::runtime_error("generation failed: " + event.error);
  }
  if (event.is_finished && event.finish_reason == engine::FinishReason::kRefused) {
    is_over_ = true;
    fail("{}", event.error);
  }
  if (event.is_finished) finish_reason_ = name_of(event.finish_reason);
  Piece piece{"", event.token, std::move(event.top_logprobs), std::move(event.record)};
  if (!event.has_token) {  // cancelled, which nobody but the engine's stop does before the end
    is_over_ = true;
    if (num_completion_tokens_ == 0) throw engine::Stopped("the server is shutting down");
    piece = *last_piece({});  // what was withheld in case it became a stop string
    piece.token.id = kNoToken;
    if (piece.text.empty()) return {};
    return piece;
  }
  ++num_completion_tokens_;
  num_cached_tokens_ = event.num_cached_tokens;
  const bool is_end = std::find(ends_.begin(), ends_.end(), event.token.id) != ends_.end();
  if (!is_end) piece.text = stops_.push(decoder_.push(event.token.id));
  if (stops_.has_stopped()) {
    finish_reason_ = "stop";
    is_over_ = true;
    if (!event.is_finished) engine_.cancel(id_);
    return piece;
  }
  return event.is_finished ? last_piece(std::move(piece)) : piece;
}

}  // namespace fathom::server
