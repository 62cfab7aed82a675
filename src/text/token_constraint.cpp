#include "text/token_constraint.h"

#include <algorithm>

#include "base/check.h"
#include "text/chat_markup.h"

namespace fathom::text {
namespace {

// A kilobyte each, with its transitions; far more than any answer needs at a time.
constexpr int64_t kMostStates = 8192;
// What makes them up, where many readings are open: up to 80 bytes each.
constexpr int64_t kMostKept = 1 << 21;

bool spells_text(const Tokenizer& tokenizer, TokenId id) {
  if (tokenizer.is_special(id)) return false;
  const std::string& bytes = tokenizer.token_bytes(id);
  // What begins a turn, and the holes of fill-in-the-middle: "<｜User｜>", "<｜fim▁hole｜>".
  const bool is_marker = bytes.starts_with("<｜") && bytes.ends_with("｜>");
  return !bytes.empty() && !is_marker;
}

int32_t num_shared_bytes(std::string_view a, std::string_view b) {
  return static_cast<int32_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first -
                              a.begin());
}

}  // namespace

TokenSpellings::TokenSpellings(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
  for (TokenId id = 0; id < tokenizer_.vocab_size(); ++id)
    if (spells_text(tokenizer_, id)) spellings_.push_back({tokenizer_.token_bytes(id), id, 0});
  std::sort(spellings_.begin(), spellings_.end(),
            [](const Spelling& a, const Spelling& b) { return a.bytes < b.bytes; });
  for (size_t i = 1; i < spellings_.size(); ++i)
    spellings_[i].num_shared = num_shared_bytes(spellings_[i - 1].bytes, spellings_[i].bytes);
  if (const auto end = tokenizer_.find(markup::kEos)) end_ = *end;
}

TokenConstraint::TokenConstraint(std::shared_ptr<const TokenSpellings> tokens,
                                 std::shared_ptr<const Grammar> grammar)
    : tokens_(std::move(tokens)), matcher_(std::move(grammar)), state_(matcher_.start()) {
  CHECK(state_ != GrammarMatcher::kDead, "the grammar derives nothing");
}

std::span<const uint64_t> TokenConstraint::allowed() {
  matcher_.begin_token();
  if (matcher_.num_states() > kMostStates || matcher_.num_kept() > kMostKept) {
    state_ = matcher_.forget_others(state_);
    masks_.clear();
  }
  const auto [it, is_new] = masks_.try_emplace(state_);
  if (is_new) it->second = mask_of(state_);
  return it->second;
}

std::vector<uint64_t> TokenConstraint::mask_of(GrammarMatcher::State state) {
  std::vector<uint64_t> mask((tokens_->vocab_size() + 63) / 64);
  const auto allow = [&](TokenId id) { mask[id / 64] |= uint64_t{1} << (id % 64); };
  if (matcher_.may_end(state) && tokens_->end() >= 0) allow(tokens_->end());
  // states[n]: after n bytes of the spelling at hand; read only as far as it leads somewhere.
  std::vector<GrammarMatcher::State> states = {state};
  int32_t num_read = 0;
  for (const auto& spelling : tokens_->spellings()) {
    // A spelling that goes on from where the one before died is dead too.
    if (spelling.num_shared > num_read) continue;
    num_read = spelling.num_shared;
    states.resize(num_read + 1);
    while (num_read < std::ssize(spelling.bytes)) {
      const auto next =
          matcher_.next(states.back(), static_cast<uint8_t>(spelling.bytes[num_read]));
      if (next == GrammarMatcher::kDead) break;
      states.push_back(next);
      ++num_read;
    }
    if (num_read == std::ssize(spelling.bytes)) allow(spelling.id);
  }
  return mask;
}

void TokenConstraint::accept(TokenId id) {
  CHECK(!has_ended_, "a token after the end");
  if (id == tokens_->end()) {
    CHECK(matcher_.may_end(state_), "the end came too early");
    has_ended_ = true;
    return;
  }
  for (const char c : tokens_->bytes(id)) {
    state_ = matcher_.next(state_, static_cast<uint8_t>(c));
    CHECK(state_ != GrammarMatcher::kDead, "token {} does not follow the grammar", id);
  }
}

}  // namespace fathom::text
