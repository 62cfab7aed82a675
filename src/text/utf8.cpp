#include "text/utf8.h"

#include <algorithm>
#include <cstring>

namespace fathom::text {

Utf8Sequence next_utf8_sequence(std::string_view text) {
  const auto byte = [&](int i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Utf8Kind::kValid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Kind::kInvalid, 1};
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // Only the second byte has a range that depends on the first.
  uint8_t low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) == text.size()) return {Utf8Kind::kIncomplete, i};
    if (byte(i) < low || byte(i) > high) return {Utf8Kind::kInvalid, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Kind::kValid, length};
}

size_t valid_utf8_prefix(std::string_view text) {
  size_t position = 0;
  while (position < text.size()) {
    uint64_t eight = 0;
    if (position + 8 <= text.size()) {
      std::memcpy(&eight, text.data() + position, 8);
      if ((eight & 0x8080808080808080u) == 0) {
        position += 8;
        continue;
      }
    }
    const Utf8Sequence sequence = next_utf8_sequence(text.substr(position));
    if (sequence.kind != Utf8Kind::kValid) return position;
    position += sequence.length;
  }
  return position;
}

std::vector<uint32_t> code_points(std::string_view text) {
  std::vector<uint32_t> all;
  for (size_t at = 0; at < text.size();) {
    const int length = next_utf8_sequence(text.substr(at)).length;
    uint32_t c = static_cast<uint8_t>(text[at]);
    if (length > 1) c &= 0x7Fu >> length;
    for (int i = 1; i < length; ++i) c = c << 6 | (static_cast<uint8_t>(text[at + i]) & 0x3F);
    all.push_back(c);
    at += length;
  }
  return all;
}

size_t count_code_points(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; });
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string clean;
  clean.reserve(text.size());
  while (!text.empty()) {
    const size_t valid = valid_utf8_prefix(text);
    clean.append(text.substr(0, valid));
    text.remove_prefix(valid);
    if (text.empty()) break;
    clean.append(kReplacementCharacter);
    text.remove_prefix(next_utf8_sequence(text).length);
  }
  return clean;
}

void append_utf8(std::string* text, uint32_t code) {
  if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) code = 0xFFFD;
  const auto put = [&](uint32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

}  // namespace fathom::text
