#include "text/grammar.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "text/test_grammar.h"

namespace fathom::text {
namespace {

TEST(Grammar, RepeatsWithinItsBounds) {
  const auto grammar = [](int64_t fewest, int64_t most) {
    Grammar grammar;
    const auto start = grammar.add_rule();
    grammar.add_alternative(start,
                            {{repeated(grammar, literal("ab"), fewest, most, literal(",")), {}}});
    return grammar;
  };
  for (const auto& [fewest, most] : {std::pair{0, -1}, {0, 2}, {1, -1}, {2, 3}, {3, 3}}) {
    std::string text;
    for (int count = 0; count <= 5; ++count) {
      const bool is_good = count >= fewest && (most < 0 || count <= most);
      EXPECT_EQ(derives(grammar(fewest, most), text), is_good) << fewest << most << text;
      text += count == 0 ? "ab" : ",ab";
    }
    EXPECT_FALSE(derives(grammar(fewest, most), "ab,"));
  }
}

TEST(Grammar, FollowsNestingToAnyDepth) {
  Grammar grammar;
  const auto start = grammar.add_rule();
  Grammar::Sequence nested = literal("(");
  nested.push_back({start, {}});
  append(nested, literal(")"));
  grammar.add_alternative(start, nested);
  grammar.add_alternative(start, literal("x"));
  for (const size_t depth : {0, 1, 7, 5000}) {
    const std::string open(depth, '('), close(depth, ')');
    EXPECT_TRUE(derives(grammar, open + "x" + close));
    EXPECT_FALSE(derives(grammar, open + "x" + close + ")"));
    EXPECT_FALSE(derives(grammar, "(" + open + "x" + close));
  }
}

TEST(Grammar, BytesWithoutAMarkerThatOverlapsItself) {
  Grammar grammar;
  const auto start = grammar.add_rule();
  grammar.add_alternative(start, {{bytes_without(grammar, "aab"), {}}});
  // Every text of up to seven letters.
  std::vector<std::string> texts = {""};
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(derives(grammar, texts[i]), texts[i].find("aab") == std::string::npos) << texts[i];
    if (texts[i].size() < 7)
      for (const char c : {'a', 'b', 'c'}) texts.push_back(texts[i] + c);
  }
}

TEST(Grammar, TextUntilAMarkerEndsAtTheFirst) {
  Grammar grammar;
  const auto start = grammar.add_rule();
  Grammar::Sequence sequence = {{bytes_without(grammar, "</x>"), {}}};
  append(sequence, literal("</x>!"));
  grammar.add_alternative(start, sequence);
  EXPECT_TRUE(derives(grammar, "</x>!"));
  EXPECT_TRUE(derives(grammar, "a <</x</x>!"));
  EXPECT_FALSE(derives(grammar, "a</x>b</x>!"));
}

TEST(Grammar, RefusesARuleThatBeginsWithItself) {
  Grammar grammar;
  const auto start = grammar.add_rule(), empty = grammar.add_rule(), other = grammar.add_rule();
  grammar.add_alternative(start, {{empty, {}}, {other, {}}});
  grammar.add_alternative(empty, {});
  grammar.add_alternative(empty, literal("e"));
  grammar.add_alternative(other, literal("o"));
  EXPECT_NO_THROW(grammar.check());
  grammar.add_alternative(other, {{empty, {}}, {start, {}}});
  EXPECT_THROW(grammar.check(), Error);
}

TEST(Grammar, ForgettingOtherStatesChangesNothing) {
  Grammar nested;
  const auto start = nested.add_rule();
  Grammar::Sequence sequence = literal("[");
  sequence.push_back({repeated(nested, {{start, {}}}, 0, -1, literal(",")), {}});
  append(sequence, literal("]"));
  nested.add_alternative(start, sequence);
  GrammarMatcher matcher(std::make_shared<const Grammar>(nested));
  auto state = matcher.start();
  for (const char c : std::string("[[],[[],["))
    state = matcher.next(state, static_cast<uint8_t>(c));
  const int64_t before = matcher.num_states();
  state = matcher.forget_others(state);
  EXPECT_LT(matcher.num_states(), before);
  for (const char c : std::string("]],[]]")) {
    ASSERT_FALSE(matcher.may_end(state));
    state = matcher.next(state, static_cast<uint8_t>(c));
    ASSERT_NE(state, GrammarMatcher::kDead);
  }
  EXPECT_TRUE(matcher.may_end(state));
  EXPECT_EQ(matcher.next(state, ']'), GrammarMatcher::kDead);
}

}  // namespace
}  // namespace fathom::text
