#include "text/token_lines.h"

#include <gtest/gtest.h>

#include <sstream>

#include "text/test_tokenizers.h"

namespace fathom::text {
namespace {

class TokenLines : public testing::Test {
 protected:
  std::string run(bool decode, const std::string& input) {
    std::istringstream in(input);
    std::ostringstream out;
    decode ? decode_lines(tokenizer_, in, out) : encode_lines(tokenizer_, in, out);
    return out.str();
  }
  std::string error_of(bool decode, const std::string& input) {
    try {
      return "accepted: " + run(decode, input);
    } catch (const Error& error) {
      return error.what();
    }
  }
  Tokenizer tokenizer_ = Tokenizer::parse(small_tokenizer_json().dump(), "small");
};

TEST_F(TokenLines, BothWays) {
  EXPECT_EQ(run(false, "\"hello\"\n\"\"\n\"a<a>\""), "[258,111]\n[]\n[97,259]\n");
  EXPECT_EQ(run(true, "[258,111]\n[]\n[97,259]\n"), "\"hello\"\n\"\"\n\"a<a>\"\n");
  EXPECT_EQ(run(true, "[195, 169, 195]\n"), "\"\u00e9\uFFFD\"\n");
}

TEST_F(TokenLines, BadLinesAreNamed) {
  EXPECT_EQ(error_of(false, "\"a\"\n5\n"), "line 2: expected a JSON string");
  EXPECT_EQ(error_of(false, "\"a\"\n\nx\n"), "line 2: not valid JSON");
  EXPECT_EQ(error_of(true, "\"a\"\n"), "line 1: expected a JSON list of token ids");
  EXPECT_EQ(error_of(true, "[1]\n[1, \"a\"]\n"), "line 2: expected token ids, found \"a\"");
  EXPECT_EQ(error_of(true, "[99999999999]\n"), "line 1: expected token ids, found 99999999999");
  EXPECT_EQ(error_of(true, "[261]\n"),
            "line 1: token id 261 is not in the vocabulary of 261 tokens");
}

}  // namespace
}  // namespace fathom::text
