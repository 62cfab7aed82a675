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
  EXPECT_NO_THROW(grammar.finish());
  grammar.add_alternative(other, {{empty, {}}, {start, {}}});
  EXPECT_THROW(grammar.finish(), Error);
}

TEST(Grammar, LeadsIntoNothingThatNoTextEnds) {
  Grammar grammar;
  const auto start = grammar.add_rule(), endless = grammar.add_rule(), empty = grammar.add_rule();
  grammar.add_alternative(endless, {byte_in("a"), {endless, {}}});
  grammar.add_alternative(start, {byte_in("a"), {endless, {}}});
  grammar.add_alternative(start, {byte_in("b"), {empty, {}}});
  Grammar nothing = grammar;
  EXPECT_THROW(nothing.finish(), Error);
  grammar.add_alternative(start, literal("cd"));
  grammar.finish();
  GrammarMatcher matcher(std::make_shared<const Grammar>(grammar));
  EXPECT_EQ(matcher.next(matcher.start(), 'a'), GrammarMatcher::kDead);
  EXPECT_EQ(matcher.next(matcher.start(), 'b'), GrammarMatcher::kDead);
  EXPECT_TRUE(derives(grammar, "cd"));
}

// Each level ten readings that differ at their ends alone: a hundred thousand after five.
TEST(Grammar, TooManyOpenReadingsEndInAnError) {
  Grammar grammar;
  std::vector<Grammar::Rule> levels;
  for (int i = 0; i < 8; ++i) levels.push_back(grammar.add_rule());
  for (int i = 0; i + 1 < 8; ++i)
    for (int way = 0; way < 10; ++way)
      grammar.add_alternative(levels[i], {byte_in("["),
                                          {levels[i + 1], {}},
                                          byte_in(std::string(1, static_cast<char>('a' + way)))});
  grammar.add_alternative(levels.back(), literal("1"));
  grammar.finish();
  GrammarMatcher matcher(std::make_shared<const Grammar>(grammar));
  auto state = matcher.start();
  EXPECT_THROW(
      {
        for (int i = 0; i < 7; ++i) state = matcher.next(state, '[');
      },
      Error);
  matcher.begin_token();
  EXPECT_NE(matcher.next(matcher.start(), '['), GrammarMatcher::kDead);
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
