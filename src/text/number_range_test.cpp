#include "text/number_range.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/check.h"
#include "text/test_grammar.h"

namespace fathom::text {
namespace {

Grammar grammar_of(const Json& schema, bool is_integer) {
  Grammar grammar;
  grammar.add_rule();
  grammar.add_alternative(Grammar::kStart,
                          {{number_rule(grammar, schema, is_integer, "schema"), {}}});
  grammar.finish();
  return grammar;
}

// In hundredths, so that nothing is rounded.
struct Bounds {
  std::optional<int> minimum, exclusive_minimum, maximum, exclusive_maximum, step;

  bool allow(int value) const {
    return (!minimum || value >= *minimum) && (!exclusive_minimum || value > *exclusive_minimum) &&
           (!maximum || value <= *maximum) && (!exclusive_maximum || value < *exclusive_maximum) &&
           (!step || value % *step == 0);
  }

  Json schema() const {
    Json schema = Json::object();
    const auto put = [&](const char* keyword, const std::optional<int>& value) {
      if (value) schema[keyword] = *value % 100 == 0 ? Json(*value / 100) : Json(*value / 100.0);
    };
    put("minimum", minimum);
    put("exclusiveMinimum", exclusive_minimum);
    put("maximum", maximum);
    put("exclusiveMaximum", exclusive_maximum);
    put("multipleOf", step);
    return schema;
  }
};

std::optional<int> random_bound(base::Random& random, double probability) {
  if (random.uniform() > probability) return {};
  const int range = random.uniform() < 0.5 ? 500 : 150000;
  return static_cast<int>((random.uniform() * 2 - 1) * range) / 50 * 50;
}

// Any of the four, or none.
Bounds random_bounds(base::Random& random) {
  Bounds bounds;
  bounds.minimum = random_bound(random, 0.5);
  bounds.exclusive_minimum = random_bound(random, 0.3);
  bounds.maximum = random_bound(random, 0.5);
  bounds.exclusive_maximum = random_bound(random, 0.3);
  return bounds;
}

TEST(NumberRange, IntegersAreThoseThatTheBoundsAllow) {
  base::Random random(3, 0);
  int num_allowed = 0;
  for (int i = 0; i < 60; ++i) {
    Bounds bounds = random_bounds(random);
    if (random.uniform() < 0.4) bounds.step = 100 * (1 + static_cast<int>(random.uniform() * 12));
    bool is_any = false;
    for (int value = -3000; value <= 3000; ++value) is_any = is_any || bounds.allow(100 * value);
    if (!is_any) continue;
    const Grammar grammar = grammar_of(bounds.schema(), true);
    for (int value = -1700; value <= 1700; value += 1 + std::abs(value) / 40) {
      EXPECT_EQ(derives(grammar, std::to_string(value)), bounds.allow(100 * value))
          << bounds.schema() << value;
      num_allowed += bounds.allow(100 * value);
    }
    for (const char* text : {"", "-", "00", "01", "-0", "1.0", "1.", "1e1", "+1"})
      EXPECT_FALSE(derives(grammar, text)) << bounds.schema() << text;
  }
  EXPECT_GT(num_allowed, 1000);
}

TEST(NumberRange, DecimalsAreThoseThatTheBoundsAllow) {
  base::Random random(5, 0);
  int num_allowed = 0;
  for (int i = 0; i < 60; ++i) {
    const Bounds bounds = random_bounds(random);
    bool is_any = false;
    for (int value = -160000; value <= 160000 && !is_any; ++value) is_any = bounds.allow(value);
    if (!is_any) continue;
    const Grammar grammar = grammar_of(bounds.schema(), false);
    for (int j = 0; j < 300; ++j) {
      const int value = static_cast<int>((random.uniform() * 2 - 1) * (j % 2 ? 600 : 160000));
      const std::string text = fmt::format("{}{}.{:02}", value < 0 ? "-" : "",
                                           std::abs(value) / 100, std::abs(value) % 100);
      EXPECT_EQ(derives(grammar, text), bounds.allow(value)) << bounds.schema() << text;
      EXPECT_EQ(derives(grammar, text + "00"), bounds.allow(value)) << bounds.schema() << text;
      if (value % 100 == 0) {
        EXPECT_EQ(derives(grammar, text.substr(0, text.size() - 3)), bounds.allow(value));
      }
      num_allowed += bounds.allow(value);
    }
    for (const char* text : {"", "-", "00", "01", "-0", "-0.0", "1.", ".5", "1e1", "+1", "0x1"})
      EXPECT_FALSE(derives(grammar, text)) << bounds.schema() << text;
  }
  EXPECT_GT(num_allowed, 1000);
}

struct Case {
  const char* schema;
  std::vector<const char*> good, bad;
};

TEST(NumberRange, HoldsBoundsThatAreNoShortDecimals) {
  const std::vector<Case> cases = {
      {R"({"minimum": 0, "maximum": 1})", {"0", "1", "0.5", "1.0", "0.0"}, {"1.01", "-0.1", "2"}},
      {R"({"exclusiveMinimum": 0})",
       {"0.00000000000001", "999999999999999", "12345678901234.5"},
       {"0", "0.0", "-1", "1000000000000000", "0.000000000000001", "12345678901234.56"}},
      {R"({"exclusiveMaximum": 100})", {"99.9999999999999"}, {"100", "99.99999999999999"}},
      {R"({"minimum": 1e-7, "exclusiveMaximum": 1e-6})",
       {"0.0000001", "0.00000099"},
       {"0", "0.000001", "0.00000009"}},
      {R"({"minimum": 1e-20})", {"0.00000000000001"}, {"0"}},
      {R"({"maximum": -1e-20})", {"-0.00000000000001"}, {"0", "0.1"}},
      {R"({"minimum": -1e300, "maximum": 1.5e2})", {"-999999999999999", "150"}, {"150.1", "1e2"}},
      {R"({"multipleOf": 0.01, "minimum": 0})",
       {"0.00", "12.34", "0.07"},
       {"1.234", "1.2", "1", "-0.01"}},
      {R"({"multipleOf": 0.25})", {"0.25", "-1.50", "3.00"}, {"0.10", "-0.00", "0.5"}},
      {R"({"multipleOf": 1000})", {"0", "-5000", "123000"}, {"1", "1500"}},
  };
  for (const Case& test : cases) {
    const Grammar grammar = grammar_of(Json::parse(test.schema), false);
    for (const char* text : test.good) EXPECT_TRUE(derives(grammar, text)) << test.schema << text;
    for (const char* text : test.bad) EXPECT_FALSE(derives(grammar, text)) << test.schema << text;
  }
  const Grammar whole =
      grammar_of(Json::parse(R"({"minimum": -9223372036854775808, "maximum": 18446744073709551615,
                                 "exclusiveMinimum": 2.5})"),
                 true);
  EXPECT_TRUE(derives(whole, "3"));
  EXPECT_TRUE(derives(whole, "999999999999999"));
  EXPECT_FALSE(derives(whole, "2"));
}

// Remainders that what follows makes good are one.
TEST(NumberRange, RulesOfRoundStepsAreFew) {
  for (const int64_t step : {20, 100, 1000}) {
    Grammar grammar;
    number_rule(grammar, {{"multipleOf", step}}, true, "schema");
    EXPECT_LT(grammar.mark().num_rules, 100u) << step;
  }
}

TEST(NumberRange, RefusesWhatNoNumberSatisfies) {
  const auto error = [](const char* schema, bool is_integer) {
    try {
      grammar_of(Json::parse(schema), is_integer);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("taken");
  };
  EXPECT_EQ(error(R"({"minimum": 3, "maximum": 2})", false),
            "schema: no number of at most 15 digits is in the range that it asks for");
  EXPECT_EQ(error(R"({"exclusiveMinimum": 3, "exclusiveMaximum": 4})", true),
            "schema: no number of at most 15 digits is in the range that it asks for");
  EXPECT_EQ(error(R"({"minimum": 7, "maximum": 9, "multipleOf": 5})", true),
            "schema: no number of at most 15 digits is in the range that it asks for");
  EXPECT_EQ(error(R"({"minimum": 1e17})", true),
            "schema: no number of at most 15 digits is in the range that it asks for");
  EXPECT_EQ(error(R"({"exclusiveMinimum": true})", false),
            "schema.exclusiveMinimum is true; expected a number");
  EXPECT_EQ(error(R"({"multipleOf": 0.5})", true),
            "schema.multipleOf is 0.5; expected an integer from 1 to 1,000");
  for (const char* step : {"0", "-2", "0.12345", "1001", "1e-18"})
    EXPECT_NE(error(fmt::format(R"({{"multipleOf": {}}})", step).c_str(), false), "taken") << step;
}

}  // namespace
}  // namespace fathom::text
