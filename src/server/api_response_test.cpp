#include "server/api_response.h"

#include <gtest/gtest.h>

#include "text/test_tokenizers.h"

namespace fathom::server {
namespace {

text::Tokenizer byte_tokenizer() {
  return text::Tokenizer::parse(text::small_tokenizer_json().dump(), "t");
}

Piece piece_of(int32_t id, std::string text, std::vector<engine::TokenLogprob> top = {}) {
  return {std::move(text), {id, -1}, std::move(top)};
}

// "é" is two tokens of a byte each; its text comes with the second.
TEST(CompletionLogprobs, OffsetsCountCharactersFromTheEchoedPromptOn) {
  ApiRequest request;
  request.prompt = "n\u00e4\u4e16";  // three characters, six bytes
  request.echo = true;
  request.sampling.logprobs = true;
  ApiResponse response(request, byte_tokenizer(), "m");
  response.add(piece_of('a', "a"));
  response.add(piece_of(0xc3, ""));
  response.add(piece_of(0xa9, "\u00e9"));
  response.add(piece_of(256, ""));  // "he", held back: it could begin a stop string
  response.add(piece_of('b', "heb"));
  const Json choice = response.body()["choices"][0];
  EXPECT_EQ(choice["text"], "n\u00e4\u4e16a\u00e9heb");
  EXPECT_EQ(choice["logprobs"]["text_offset"], Json({3, 4, 4, 5, 7}));
  EXPECT_EQ(choice["logprobs"]["tokens"], Json({"a", "bytes:\\xc3", "bytes:\\xa9", "he", "b"}));
}

TEST(CompletionLogprobs, PartsOfCharactersKeepTheirOwnNames) {
  ApiRequest request;
  request.sampling.logprobs = true;
  ApiResponse response(request, byte_tokenizer(), "m");
  response.add(piece_of('a', "a", {{0xe4, -1}, {0xe5, -2}, {'a', -3}}));
  const Json expected = {{{"bytes:\\xe4", -1.0}, {"bytes:\\xe5", -2.0}, {"a", -3.0}}};
  EXPECT_EQ(response.body()["choices"][0]["logprobs"]["top_logprobs"], expected);
}

}  // namespace
}  // namespace fathom::server
