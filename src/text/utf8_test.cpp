#include "text/utf8.h"

#include <gtest/gtest.h>

#include "text/byte_level.h"

namespace fathom::text {
namespace {

TEST(Utf8, ReplacesMaximalSubparts) {
  struct Case {
    std::string bytes, expected;
  };
  const std::string r(kReplacementCharacter);
  const Case cases[] = {
      {"plain", "plain"},
      {"h\u00e9 \u4e16 \U0001F600", "h\u00e9 \u4e16 \U0001F600"},
      // The example of the Unicode standard, table 3-8.
      {"\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64",
       "a" + r + r + r + "b" + r + "c" + r + r + "d"},
      {"\xC0\xAF", r + r},                  // overlong
      {"\xE0\x80\xBF", r + r + r},          // overlong
      {"\xED\xA0\x80", r + r + r},          // surrogate
      {"\xF4\x90\x80\x80", r + r + r + r},  // above U+10FFFF
      {"\xF0\x9F\x98", r},                  // cut off
      {"12345678\xFF"
       "12345678",
       "12345678" + r + "12345678"},
  };
  for (const Case& c : cases) EXPECT_EQ(replace_invalid_utf8(c.bytes), c.expected);
}

TEST(Utf8, EveryCodePointIsOneValidSequence) {
  for (uint32_t code = 0; code <= 0x10FFFF; ++code) {
    if (code >= 0xD800 && code < 0xE000) continue;
    std::string text;
    append_utf8(&text, code);
    const Utf8Sequence sequence = next_utf8_sequence(text);
    ASSERT_EQ(sequence.kind, Utf8Kind::kValid) << code;
    ASSERT_EQ(sequence.length, static_cast<int>(text.size())) << code;
    for (size_t size = 1; size < text.size(); ++size) {
      const Utf8Sequence part = next_utf8_sequence(std::string_view(text).substr(0, size));
      ASSERT_EQ(part.kind, Utf8Kind::kIncomplete) << code;
      ASSERT_EQ(part.length, static_cast<int>(size)) << code;
    }
  }
}

TEST(Utf8, CountsCodePoints) {
  EXPECT_EQ(count_code_points(""), 0u);
  EXPECT_EQ(count_code_points("a\u00e9\u4e16\U0001F600"), 4u);
}

TEST(ByteLevel, RoundTripsEveryByte) {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.push_back(static_cast<char>(byte));
  EXPECT_EQ(from_byte_level(to_byte_level(bytes)), bytes);
  EXPECT_EQ(to_byte_level(" a\n"), "\u0120a\u010a");
  EXPECT_EQ(from_byte_level("\u4e16"), std::nullopt);
  EXPECT_EQ(from_byte_level(" "), std::nullopt);
}

}  // namespace
}  // namespace fathom::text
