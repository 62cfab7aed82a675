// UTF-8 by the Unicode standard's table 3-7: no overlong forms, no surrogates, nothing over
// U+10FFFF.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fathom::text {

enum class Utf8Kind {
  kValid,       // a whole character
  kInvalid,     // bytes that no character can begin with: the "maximal subpart" to replace
  kIncomplete,  // the text ends inside what could still become a character
};

struct Utf8Sequence {
  Utf8Kind kind;
  int length;  // bytes, at least 1
};

// What stands at the start of `text`, which must not be empty.
Utf8Sequence next_utf8_sequence(std::string_view text);

// Length of the longest prefix that is valid UTF-8.
size_t valid_utf8_prefix(std::string_view text);

inline bool is_valid_utf8(std::string_view text) { return valid_utf8_prefix(text) == text.size(); }

// Of valid UTF-8.
size_t count_code_points(std::string_view text);

// Of valid UTF-8.
std::vector<uint32_t> code_points(std::string_view text);

// Every invalid or incomplete subpart becomes one U+FFFD.
std::string replace_invalid_utf8(std::string_view text);

// Appends one code point (a valid scalar value); surrogates and values over U+10FFFF become U+FFFD.
void append_utf8(std::string* text, uint32_t code_point);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

}  // namespace fathom::text
