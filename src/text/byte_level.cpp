#include "text/byte_level.h"

#include <array>
#include <cstdint>

#include "text/utf8.h"

namespace fathom::text {

namespace {

// The alphabet's largest code point is 0x143.
struct Alphabet {
  std::array<uint16_t, 256> code_of_byte{};
  std::array<int16_t, 0x144> byte_of_code{};
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  for (int16_t& byte : alphabet.byte_of_code) byte = -1;
  uint16_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool stands_for_itself =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const uint16_t code = stands_for_itself ? static_cast<uint16_t>(byte) : next++;
    alphabet.code_of_byte[byte] = code;
    alphabet.byte_of_code[code] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::string to_byte_level(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) append_utf8(&text, kAlphabet.code_of_byte[static_cast<uint8_t>(c)]);
  return text;
}

std::optional<std::string> from_byte_level(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    uint32_t code = static_cast<uint8_t>(text[i]);
    if (code >= 0x80) {
      // The whole alphabet lies in two-byte sequences.
      if (code < 0xC2 || code >= 0xE0 || i + 1 == text.size()) return std::nullopt;
      code = (code & 0x1F) << 6 | (static_cast<uint8_t>(text[++i]) & 0x3F);
    }
    if (code >= kAlphabet.byte_of_code.size() || kAlphabet.byte_of_code[code] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(kAlphabet.byte_of_code[code]));
  }
  return bytes;
}

}  // namespace fathom::text
