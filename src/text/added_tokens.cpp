#include "text/added_tokens.h"

#include <algorithm>

namespace fathom::text {

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  for (const AddedToken& token : tokens_) begins_[static_cast<uint8_t>(token.content[0])] = true;
}

AddedTokens::Match AddedTokens::find_first(std::string_view text) const {
  for (size_t i = 0; i < text.size(); ++i) {
    if (!begins_[static_cast<uint8_t>(text[i])]) continue;
    if (const AddedToken* token = longest_prefix_of(text.substr(i))) {
      return {i, token->content.size(), token->id};
    }
  }
  return {text.size(), 0, -1};
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto token =
      std::lower_bound(tokens_.begin(), tokens_.end(), content,
                       [](const AddedToken& a, std::string_view b) { return a.content < b; });
  return token != tokens_.end() && token->content == content ? &*token : nullptr;
}

// Narrows the range of contents that agree with the text, a byte at a time.
const AddedToken* AddedTokens::longest_prefix_of(std::string_view text) const {
  auto begin = tokens_.begin(), end = tokens_.end();
  const AddedToken* longest = nullptr;
  for (size_t depth = 0; depth < text.size() && begin != end; ++depth) {
    const auto wanted = static_cast<uint8_t>(text[depth]);
    const auto byte = [depth](const AddedToken& token) {
      return depth < token.content.size() ? static_cast<uint8_t>(token.content[depth]) : -1;
    };
    begin = std::partition_point(begin, end, [&](const auto& t) { return byte(t) < wanted; });
    end = std::partition_point(begin, end, [&](const auto& t) { return byte(t) == wanted; });
    if (begin != end && begin->content.size() == depth + 1) longest = &*begin;
  }
  return longest;
}

}  // namespace fathom::text
