// Which tokens of a vocabulary a grammar lets come next.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/grammar.h"
#include "text/tokenizer.h"

namespace fathom::text {

// The tokens that spell text, sorted by their bytes, so that one walk over them reads every shared
// beginning once. Special tokens and markers between turns spell nothing. Immutable.
class TokenSpellings {
 public:
  explicit TokenSpellings(const Tokenizer& tokenizer);

  struct Spelling {
    std::string_view bytes;
    TokenId id = 0;
    int32_t num_shared = 0;  // leading bytes that it has in common with the one before
  };
  std::span<const Spelling> spellings() const { return spellings_; }
  const std::string& bytes(TokenId id) const { return tokenizer_.token_bytes(id); }
  int vocab_size() const { return tokenizer_.vocab_size(); }
  TokenId end() const { return end_; }  // the end-of-sentence token; -1 if there is none

 private:
  Tokenizer tokenizer_;  // owns the bytes
  std::vector<Spelling> spellings_;
  TokenId end_ = -1;
};

// One answer's way through a grammar. Masks are kept by state: a long string costs one walk over
// the vocabulary. Not for several threads at once.
class TokenConstraint {
 public:
  TokenConstraint(std::shared_ptr<const TokenSpellings> tokens,
                  std::shared_ptr<const Grammar> grammar);

  // A bit a token, from the lowest of the first word: those that some answer goes on with, and the
  // end token where the answer may end. Valid until the next call.
  std::span<const uint64_t> allowed();
  // The token that was chosen; CHECKs that it was allowed.
  void accept(TokenId id);

 private:
  std::vector<uint64_t> mask_of(GrammarMatcher::State state);

  std::shared_ptr<const TokenSpellings> tokens_;
  GrammarMatcher matcher_;
  GrammarMatcher::State state_;
  bool has_ended_ = false;
  std::unordered_map<GrammarMatcher::State, std::vector<uint64_t>> masks_;
};

}  // namespace fathom::text
