#include "server/generation.h"

#include <gtest/gtest.h>

#include "server/text_model.h"
#include "text/chat_markup.h"

namespace fathom::server {
namespace {

class GenerationTest : public testing::Test {
 protected:
  // The best token every time, never the end.
  GenerationRequest greedy_request(int max_tokens) const {
    GenerationRequest request;
    request.prompt = "The package manager";
    request.max_tokens = max_tokens;
    request.sampling.temperature = 0;
    request.sampling.logit_bias[text_.tokenizer.find(text::markup::kEos).value()] = -100;
    return request;
  }

  TextModel text_ = load_text_model(std::filesystem::path(FATHOM_ROOT) / "models/nano");
  engine::Engine engine_{text_.model, {}};
};

std::string all_text(Generation& generation) {
  std::string text;
  while (const auto piece = generation.next()) text += piece->text;
  return text;
}

// A stop string that never ends withholds the whole answer.
TEST_F(GenerationTest, AStoppedEngineLeavesNoTextWithheld) {
  Generation whole(engine_, text_.tokenizer, greedy_request(2000));
  const std::string expected = all_text(whole);
  EXPECT_EQ(whole.finish_reason(), "length");

  GenerationRequest request = greedy_request(2000);
  request.stop = {expected + "and so on"};
  Generation cut(engine_, text_.tokenizer, request);
  for (int token = 0; token < 5; ++token) EXPECT_EQ(cut.next()->text, "");
  engine_.stop();
  const std::string text = all_text(cut);
  EXPECT_EQ(cut.finish_reason(), "insufficient_system_resource");
  EXPECT_GE(cut.num_completion_tokens(), 5);
  EXPECT_LT(cut.num_completion_tokens(), 2000);
  EXPECT_FALSE(text.empty());
  EXPECT_LT(text.size(), expected.size());
  EXPECT_TRUE(expected.starts_with(text));
}

// Bytes alone that begin a character of three.
TEST_F(GenerationTest, OfACharacterThatALimitCutNothingIsShown) {
  GenerationRequest request = greedy_request(1);
  const std::vector<int32_t> ids = text_.tokenizer.encode("\xE4\xB8\x96");
  ASSERT_GT(ids.size(), 1u);
  request.sampling.logit_bias[ids.front()] = 100;
  Generation generation(engine_, text_.tokenizer, request);
  EXPECT_EQ(all_text(generation), "");
  EXPECT_EQ(generation.finish_reason(), "length");
  EXPECT_EQ(generation.num_completion_tokens(), 1);
}

TEST_F(GenerationTest, AnEngineThatStopsBeforeTheFirstTokenSaysSo) {
  GenerationRequest request = greedy_request(10);
  request.prompt_tokens.assign(8000, 100);
  Generation generation(engine_, text_.tokenizer, request);
  engine_.stop();
  EXPECT_THROW(generation.next(), engine::Stopped);
}

}  // namespace
}  // namespace fathom::server
