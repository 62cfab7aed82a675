// Tokens that are found in the raw text before it is cut into pieces: special markers.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fathom::text {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool is_special = false;
};

class AddedTokens {
 public:
  struct Match {
    size_t begin = 0;  // the text's size if there is no match
    size_t length = 0;
    int32_t id = -1;
  };

  AddedTokens() = default;
  // Contents must be distinct and not empty.
  explicit AddedTokens(std::vector<AddedToken> tokens);

  // Leftmost match, of those the longest.
  Match find_first(std::string_view text) const;
  const AddedToken* find(std::string_view content) const;
  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  const AddedToken* longest_prefix_of(std::string_view text) const;

  std::vector<AddedToken> tokens_;  // sorted by content
  std::array<bool, 256> begins_{};  // bytes that some content begins with
};

}  // namespace fathom::text
