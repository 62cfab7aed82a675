// Grammars in tests: membership, and texts drawn at random.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "text/grammar.h"

namespace fathom::text {

inline bool derives(const Grammar& grammar, std::string_view text) {
  GrammarMatcher matcher(std::make_shared<const Grammar>(grammar));
  auto state = matcher.start();
  for (const char c : text) {
    if (state == GrammarMatcher::kDead) return false;
    matcher.begin_token();
    state = matcher.next(state, static_cast<uint8_t>(c));
  }
  return state != GrammarMatcher::kDead && matcher.may_end(state);
}

// A walk along random bytes, those that close something taken more often with time. Empty if it
// comes to no end within `most` bytes.
inline std::string random_text(GrammarMatcher& matcher, base::Random& random, size_t most) {
  std::string text;
  auto state = matcher.start();
  while (text.size() < most) {
    std::vector<uint8_t> possible, closing;
    for (int byte = 0; byte < 256; ++byte) {
      if (matcher.next(state, static_cast<uint8_t>(byte)) == GrammarMatcher::kDead) continue;
      possible.push_back(static_cast<uint8_t>(byte));
      if (std::string_view("]}\"</").find(static_cast<char>(byte)) != std::string_view::npos)
        closing.push_back(static_cast<uint8_t>(byte));
    }
    if (possible.empty() || (matcher.may_end(state) && random.uniform() < 0.1)) break;
    const bool closes = !closing.empty() && random.uniform() < 0.5;
    const auto& choice = closes ? closing : possible;
    const uint8_t byte = choice[static_cast<size_t>(random.uniform() * choice.size())];
    text += static_cast<char>(byte);
    state = matcher.next(state, byte);
  }
  return matcher.may_end(state) ? text : "";
}

}  // namespace fathom::text
