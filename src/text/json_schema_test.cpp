#include "text/json_schema.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "text/test_grammar.h"

namespace fathom::text {
namespace {

struct Case {
  const char* schema;
  std::vector<const char*> good;
  std::vector<const char*> bad;
};

TEST(JsonSchema, DerivesWhatSatisfiesTheSchemaAndNothingElse) {
  const std::vector<Case> cases = {
      {R"({"type": "integer"})", {"0", "-7", "1234"}, {"", "01", "-0", "1.5", "1e3", "x"}},
      {R"({"type": "number"})",
       {"0", "-0.5", "12.25", "1e9", "-3.0E-7"},
       {".5", "1.", "1e", "--1", "1e999"}},
      {R"({"type": "boolean"})", {"true", "false"}, {"null", "True"}},
      {R"({"type": "null"})", {"null"}, {"nul", "0"}},
      {R"({"type": ["string", "null"]})", {R"("a")", "null"}, {"1"}},
      {R"({"type": "string"})",
       {R"("")", R"("a\n\u00e9\"")", "\"\xC3\xA9\xF0\x9F\x98\x80\""},
       {"\"a", "\"\n\"", "\"\xC3\"", R"("\x")", R"("\ud800")", "\"\xED\xA0\x80\""}},
      {R"({"type": "string", "minLength": 2, "maxLength": 3})",
       {R"("ab")", "\"\xC3\xA9\xC3\xA9\xC3\xA9\""},
       {R"("a")", R"("abcd")"}},
      {R"({"type": "string", "pattern": "^[^\"]b\\n?$"})",
       {R"("ab")", R"("ab\n")",
        "\"\xC3\xA9"
        "b\""},
       {R"("b")", R"("\"b")", R"("abc")", R"("\u0061b")"}},
      {R"({"type": "string", "format": "date"})",
       {R"("2024-02-29")"},
       {R"("2023-02-29")", R"("")"}},
      {R"({"type": ["integer", "string"], "minimum": -3, "exclusiveMaximum": 12, "minLength": 1})",
       {"-3", "0", "11", R"("x")"},
       {"-4", "12", R"("")", "1.5"}},
      {R"({"type": "number", "multipleOf": 0.5, "maximum": 2})",
       {"1.5", "-7.0"},
       {"2.5", "1", "0.2"}},
      {R"({"enum": ["red", 3, null]})", {R"("red")", "3", "null"}, {R"("blue")", "4"}},
      {R"({"const": {"a": 1}})", {R"({"a":1})"}, {R"({"a":2})"}},
      {R"({"type": "array", "items": {"type": "integer"}})",
       {"[]", "[1]", "[1, 2,3]", "[\n  1\n]"},
       {"[1,]", "[,1]", "[a]", "[1 2]", "[1,  2]"}},
      {R"({"type": "array", "items": {"const": 1}, "minItems": 1, "maxItems": 2})",
       {"[1]", "[1,1]"},
       {"[]", "[1,1,1]"}},
      {R"({"type": "array", "maxItems": 0})", {"[]"}, {"[1]"}},
      {R"({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}, "c": {"const": 1}},
           "required": ["b"]})",
       {R"({"b":2})", R"({"a": 1, "b": [{}]})", R"({"b": "x","c":1})",
        "{\n  \"a\": 1,\n  \"b\": 2\n}"},
       {"{}", R"({"a":1})", R"({"b":2,"a":1})", R"({"a":1,})", R"({"b":1,"d":2})", R"({,"b":1})",
        R"({"a":1"b":1})"}},
      {R"({"type": "object"})", {"{}", R"({"x": {"y": [1, "z"]}})"}, {"[]", "{x:1}", R"({"x"})"}},
      {R"({"type": "object", "additionalProperties": false})", {"{}"}, {R"({"a":1})"}},
      {R"({"type": "object", "additionalProperties": {"type": "null"}})",
       {"{}", R"({"a":null,"b": null})"},
       {R"({"a":1})"}},
      {R"({"anyOf": [{"type": "integer"}, {"type": "string"}]})", {"1", R"("1")"}, {"true"}},
      {R"({"type": ["integer", "null"], "enum": [1, "a", null, 2.5]})",
       {"1", "null"},
       {R"("a")", "2.5"}},
      {R"({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}},
           "anyOf": [{"required": ["a"]}, {"required": ["b"], "title": "x"}]})",
       {R"({"a": 1})", R"({"b": null})", R"({"a": 1, "b": null})"},
       {"{}", "1", R"({"a": null})"}},
      {R"({"allOf": [{"$ref": "#/$defs/n"}], "$defs": {"n": {"type": "null"}}})", {"null"}, {"1"}},
      {R"({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties":
           {"of": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}}})",
       {"{}", R"({"of":[]})", R"({"of":[{"of": []},{}]})"},
       {R"({"of":[1]})"}},
      {"true", {"1", "[{}]"}, {"", "1 2"}},
      {R"({"oneOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]})",
       {"1", "\"a\"", "null"},
       {"true"}},
      {R"({"oneOf": [{"type": "object", "properties": {"of": {"const": "a"}}, "required": ["of"]},
                     {"type": "object", "properties": {"of": {"enum": ["b", "c"]}},
                      "required": ["of"]}]})",
       {R"({"of":"a"})", R"({"of":"c"})"},
       {R"({"of":"d"})"}},
  };
  for (const Case& test : cases) {
    const Grammar grammar = json_schema_grammar(Json::parse(test.schema), UnheldKeywords::kRefused);
    for (const char* text : test.good) EXPECT_TRUE(derives(grammar, text)) << test.schema << text;
    for (const char* text : test.bad) EXPECT_FALSE(derives(grammar, text)) << test.schema << text;
  }
}

TEST(JsonSchema, EveryTextOfAnyObjectIsJson) {
  GrammarMatcher matcher(std::make_shared<const Grammar>(json_object_grammar()));
  base::Random random(7, 0);
  int num_ended = 0;
  for (int i = 0; i < 300; ++i) {
    const std::string text = random_text(matcher, random, 400);
    if (text.empty()) continue;
    ++num_ended;
    ASSERT_TRUE(Json::accept(text)) << text;
    EXPECT_TRUE(Json::parse(text).is_object()) << text;
  }
  EXPECT_GT(num_ended, 100);
}

TEST(JsonSchema, RefusesWhatItCannotHoldTo) {
  const auto error = [](const char* schema, UnheldKeywords unheld = UnheldKeywords::kRefused) {
    try {
      json_schema_grammar(Json::parse(schema), unheld);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("taken");
  };
  const char* unique =
      R"({"type": "object", "properties": {"n": {"type": "array", "uniqueItems": true}}})";
  EXPECT_EQ(error(unique),
            "schema.n.uniqueItems cannot be held to while sampling; leave it out, or set "
            "\"strict\" to false");
  EXPECT_EQ(error(unique, UnheldKeywords::kIgnored), "taken");
  EXPECT_EQ(error(R"({"type": "integer", "minimum": 3, "maximum": 2})"),
            "schema: no number of at most 15 digits is in the range that it asks for");
  EXPECT_EQ(error(R"({"type": "text"})"),
            "schema.type is \"text\"; expected object, array, string, number, integer, boolean or "
            "null");
  EXPECT_EQ(error(R"({"type": "object", "properties": {"a": {}}, "required": ["b"]})"),
            "schema.required names \"b\"; expected one of the properties");
  EXPECT_EQ(error(R"({"type": "string", "maxLength": 99999})"),
            "schema.maxLength is 99999; expected an integer from 0 to 4096");
  EXPECT_EQ(error(R"({"type": "array", "minItems": 3, "maxItems": 2})"),
            "schema: maxItems is below minItems");
  EXPECT_EQ(error(R"({"$ref": "#/$defs/x"})"), "schema.$ref: there is no \"#/$defs/x\"");
  EXPECT_EQ(error(R"({"$ref": "other.json"})"),
            "schema.$ref is \"other.json\"; expected a place in the same schema: \"#/$defs/...\"");
  EXPECT_EQ(error(R"({"$ref": "#"})"), "schema.$ref leads in a circle");
  EXPECT_EQ(error(R"({"anyOf": [{"$ref": "#"}, {"type": "null"}]})"),
            "the grammar has a rule that begins with itself");
  for (const char* unheld :
       {R"({"type": "text"})", R"({"type": "string", "maxLength": 99999})",
        R"({"type": "object", "properties": {"a": {}}, "required": ["b"]})",
        R"({"allOf": [{"type": "null"}, {}]})", R"({"type": "string", "format": "colour"})",
        R"x({"type": "string", "pattern": "a(?=b)"})x", R"({"type": "string", "pattern": 3})",
        R"({"type": "string", "pattern": "a", "format": "date"})",
        R"({"type": "integer", "multipleOf": 0.5})", R"({"type": "number", "minimum": "3"})",
        R"({"oneOf": [{"type": "integer"}, {"type": "number"}]})",
        R"({"oneOf": [{"type": "string", "maxLength": 5}, {"type": "string", "minLength": 3}]})",
        R"({"oneOf": [{"type": "object", "properties": {"of": {"const": "a"}}},
                      {"type": "object", "properties": {"of": {"const": "b"}}}]})",
        R"({"type": "object", "anyOf": [{"type": "null"}, {"type": "object"}]})",
        R"({"minItems": 1, "enum": [[], [1]]})", R"({"maxItems": 3})",
        R"({"$ref": "#/$defs/a", "maxLength": 3, "$defs": {"a": {"type": "string"}}})"}) {
    EXPECT_NE(error(unheld), "taken") << unheld;
    EXPECT_EQ(error(unheld, UnheldKeywords::kIgnored), "taken") << unheld;
  }
  EXPECT_EQ(error(R"({"$ref": "#/$defs/a", "maxLength": 3, "$defs": {"a": {"type": "string"}}})"),
            "schema.maxLength beside $ref cannot be held to while sampling; leave it out, or set "
            "\"strict\" to false");
  EXPECT_EQ(error(R"({"type": "integer", "enum": ["a", null]})", UnheldKeywords::kIgnored),
            R"(schema: no value satisfies {"type":"integer","enum":["a",null]})");
  EXPECT_EQ(error(R"({"anyOf": [{"$ref": "#"}]})"),
            "no answer satisfies the request's schema or tools");
  EXPECT_EQ(error(R"({"enum": []})"), "schema.enum is []; expected an array that is not empty");
  EXPECT_EQ(error("3"), "schema is 3; expected an object");
}

// Where nothing is refused, what cannot be held to leaves what can.
TEST(JsonSchema, HoldsToWhatItCanWhereNothingIsRefused) {
  const std::vector<Case> cases = {
      {R"x({"type": "string", "pattern": "a(?=b)", "format": "date"})x",
       {R"("2024-02-29")"},
       {R"("ab")"}},
      {R"({"type": "string", "pattern": "\\S", "maxLength": 3})", {R"("abc")"}, {R"("abcd")"}},
      {R"({"type": "string", "pattern": "^[]$"})", {R"("any")"}, {"1"}},
      {R"({"type": "integer", "minimum": 3, "exclusiveMinimum": true})", {"3", "10"}, {"2"}},
      {R"({"type": "number", "minimum": 0, "multipleOf": 0.00001234})", {"0.5"}, {"-2"}},
      {R"({"type": "number", "minimum": 3, "maximum": 2})", {"7"}, {"x"}}};
  for (const Case& test : cases) {
    const Grammar grammar = json_schema_grammar(Json::parse(test.schema), UnheldKeywords::kIgnored);
    for (const char* text : test.good) EXPECT_TRUE(derives(grammar, text)) << test.schema << text;
    for (const char* text : test.bad) EXPECT_FALSE(derives(grammar, text)) << test.schema << text;
  }
  // As many as there is room for; the others are any strings, or numbers.
  Json many = {{"type", "object"}, {"properties", Json::object()}};
  for (int i = 0; i < 40; ++i) {
    many["properties"]["n" + std::to_string(i)] = {{"type", "integer"},
                                                   {"multipleOf", 997 - i % 2}};
    many["properties"]["p" + std::to_string(i)] = {{"type", "string"},
                                                   {"pattern", "^[a-z]{4000}$"}};
    many["properties"]["q" + std::to_string(i)] = {{"type", "string"},
                                                   {"pattern", "^(?:a{4000}b){4000}$"}};
  }
  EXPECT_NO_THROW(json_schema_grammar(many, UnheldKeywords::kIgnored));
  EXPECT_THROW(json_schema_grammar(many, UnheldKeywords::kRefused), Grammar::TooLarge);
}

// What a request can ask for without the server's stack or memory giving way.
TEST(JsonSchema, RefusesSchemasOfExcessiveSize) {
  const auto error = [](const Json& schema) {
    try {
      json_schema_grammar(schema, UnheldKeywords::kIgnored);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("taken");
  };
  Json chain = {{"$ref", "#/$defs/0"}, {"$defs", Json::object()}};
  Json wide = {{"type", "object"}, {"properties", Json::object()}};
  for (int i = 0; i < 5000; ++i) {
    const std::string next = "#/$defs/" + std::to_string(i + 1);
    chain["$defs"][std::to_string(i)] = {{"anyOf", {{{"$ref", next}}, {{"type", "null"}}}}};
    wide["properties"]["p" + std::to_string(i)] = true;
  }
  chain["$defs"]["5000"] = {{"type", "null"}};
  EXPECT_NE(error(chain).find("has more than 1000 parts"), std::string::npos) << error(chain);
  EXPECT_NE(error(wide).find("has more than 1000 parts"), std::string::npos) << error(wide);
  Json bounds = {{"type", "object"}, {"properties", Json::object()}};
  for (int i = 0; i < 200; ++i)
    bounds["properties"]["p" + std::to_string(i)] = {{"type", "string"}, {"maxLength", 4000}};
  EXPECT_NE(error(bounds).find("too large"), std::string::npos) << error(bounds);

  // As wide as can be asked for: followed at once.
  Json most = {{"type", "object"}, {"properties", Json::object()}};
  for (int i = 0; i < 900; ++i) most["properties"]["p" + std::to_string(i)] = true;
  EXPECT_TRUE(derives(json_schema_grammar(most, UnheldKeywords::kRefused), R"({"p899": 1})"));
}

}  // namespace
}  // namespace fathom::text
