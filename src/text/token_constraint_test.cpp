#include "text/token_constraint.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "text/json_schema.h"
#include "text/test_grammar.h"

namespace fathom::text {
namespace {

class TokenConstraintTest : public testing::Test {
 protected:
  TokenConstraintTest()
      : tokenizer_(Tokenizer::load(std::string(FATHOM_ROOT) + "/models/nano/tokenizer.json")),
        tokens_(std::make_shared<const TokenSpellings>(tokenizer_)) {}

  static bool is_set(std::span<const uint64_t> mask, TokenId id) {
    return (mask[id / 64] >> (id % 64) & 1) != 0;
  }

  Tokenizer tokenizer_;
  std::shared_ptr<const TokenSpellings> tokens_;
};

// Against the slow way: every token by itself.
TEST_F(TokenConstraintTest, AllowsTheTokensThatTheGrammarGoesOnWith) {
  const auto grammar = std::make_shared<const Grammar>(json_object_grammar());
  TokenConstraint constraint(tokens_, grammar);
  GrammarMatcher matcher(grammar);
  auto state = matcher.start();
  const TokenId end = tokens_->end();
  for (const TokenId next : tokenizer_.encode(R"({"name": ["x", 1.5e3, {"ab": null}]})")) {
    const auto mask = constraint.allowed();
    for (TokenId id = 0; id < tokenizer_.vocab_size(); ++id) {
      auto reached = state;
      for (const char c : tokenizer_.token_bytes(id))
        if (reached != GrammarMatcher::kDead)
          reached = matcher.next(reached, static_cast<uint8_t>(c));
      const std::string& bytes = tokenizer_.token_bytes(id);
      const bool is_text = !bytes.empty() && !tokenizer_.is_special(id) &&
                           !(bytes.starts_with("<｜") && bytes.ends_with("｜>"));
      ASSERT_EQ(is_set(mask, id), is_text && reached != GrammarMatcher::kDead) << bytes;
    }
    ASSERT_TRUE(is_set(mask, next));
    constraint.accept(next);
    for (const char c : tokenizer_.token_bytes(next))
      state = matcher.next(state, static_cast<uint8_t>(c));
  }
  // The object stands: nothing but the end.
  const auto mask = constraint.allowed();
  for (TokenId id = 0; id < tokenizer_.vocab_size(); ++id) ASSERT_EQ(is_set(mask, id), id == end);
  constraint.accept(end);
  EXPECT_THROW(constraint.accept(end), InternalError);
}

TEST_F(TokenConstraintTest, ForgetsStatesAndGoesOn) {
  TokenConstraint constraint(tokens_, std::make_shared<const Grammar>(json_object_grammar()));
  // Each level is a new stack; a long enough answer meets more states than are kept.
  const int kLevels = 9000;
  for (const TokenId id : tokenizer_.encode("{\"a\":")) constraint.accept(id);
  const TokenId open = tokenizer_.encode("[").front(), close = tokenizer_.encode("]").front();
  for (int i = 0; i < kLevels; ++i) {
    ASSERT_TRUE(is_set(constraint.allowed(), open));
    constraint.accept(open);
  }
  for (int i = 0; i < kLevels; ++i) {
    ASSERT_TRUE(is_set(constraint.allowed(), close));
    constraint.accept(close);
  }
  EXPECT_FALSE(is_set(constraint.allowed(), close));
  EXPECT_THROW(constraint.accept(close), InternalError);
}

}  // namespace
}  // namespace fathom::text
