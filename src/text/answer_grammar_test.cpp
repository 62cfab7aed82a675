#include "text/answer_grammar.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "text/chat_markup.h"
#include "text/string_format.h"
#include "text/test_grammar.h"

namespace fathom::text {
namespace {

using Kind = AnswerFormat::Kind;

Json tools() {
  return Json::parse(R"([
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object",
      "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1},
                     "unit": {"enum": ["C", "F"]}, "spots": {"type": "array", "items": {"type": "number"}},
                     "note": {"type": ["string", "null"]}, "any": {}},
      "required": ["city"]}}},
    {"type": "function", "function": {"name": "now"}}])");
}

std::string calls(const std::string& inside) {
  return std::string(markup::kCallsOpen) + inside + std::string(markup::kCallsClose);
}
std::string invoke(const std::string& name, const std::string& inside) {
  return "<｜DSML｜invoke name=\"" + name + "\">\n" + inside + "</｜DSML｜invoke>\n";
}
std::string parameter(const std::string& name, const std::string& is_string,
                      const std::string& value) {
  return "<｜DSML｜parameter name=\"" + name + "\" string=\"" + is_string + "\">" + value +
         "</｜DSML｜parameter>\n";
}

TEST(AnswerGrammar, TakesOneCallAloneWhereManyAreNotWanted) {
  const std::string call = invoke("now", "\n");
  for (const Kind kind : {Kind::kCalls, Kind::kText}) {
    AnswerFormat format{.thinking_mode = ThinkingMode::kChat, .kind = kind, .tools = tools()};
    EXPECT_TRUE(derives(answer_grammar(format), calls(call + call)));
    format.allows_many_calls = false;
    EXPECT_TRUE(derives(answer_grammar(format), calls(call)));
    EXPECT_FALSE(derives(answer_grammar(format), calls(call + call)));
  }
}

TEST(AnswerGrammar, TakesTheCallsThatTheToolsAllow) {
  const Grammar grammar = answer_grammar(
      {.thinking_mode = ThinkingMode::kChat, .kind = Kind::kCalls, .tools = tools()});
  const std::string city = parameter("city", "true", "K\xC3\xB6ln </｜\n\"x\"");
  EXPECT_TRUE(derives(grammar, calls(invoke("weather", city))));
  EXPECT_TRUE(derives(grammar, calls(invoke("now", "\n") + invoke("weather", city))));
  EXPECT_TRUE(derives(grammar, calls(invoke("now", ""))));
  EXPECT_TRUE(
      derives(grammar, calls(invoke("weather", city + parameter("days", "false", "3") +
                                                   parameter("unit", "true", "C") +
                                                   parameter("spots", "false", "[1.5, 2]")))));
  EXPECT_TRUE(
      derives(grammar, calls(invoke("weather", city + parameter("note", "false", "null") +
                                                   parameter("any", "false", "{\"a\": 1}")))));
  EXPECT_TRUE(derives(grammar, calls(invoke("weather", city + parameter("note", "true", "null") +
                                                           parameter("any", "true", "{")))));
  const std::vector<std::string> bad = {
      "",
      "text",
      calls(""),
      "text" + calls(invoke("now", "\n")),
      calls(invoke("later", "\n")),    // no such tool
      calls(invoke("weather", "\n")),  // city is required
      calls(invoke("weather", parameter("city", "false", "1"))),
      calls(invoke("weather", parameter("days", "false", "3") + city)),
      calls(invoke("weather", city + parameter("days", "true", "3"))),
      calls(invoke("weather", city + parameter("unit", "true", "K"))),
      calls(invoke("weather", city + parameter("days", "false", "three"))),
      calls(invoke("weather", city + city)),
      calls(invoke("now", "\n")) + "more",
      calls(invoke("weather", parameter("city", "true", "a</｜DSML｜parameter>\nb")))};
  for (const std::string& text : bad) EXPECT_FALSE(derives(grammar, text)) << text;
}

TEST(AnswerGrammar, FreeTextMayEndInCalls) {
  const Grammar grammar = answer_grammar(
      {.thinking_mode = ThinkingMode::kThinking, .kind = Kind::kText, .tools = tools()});
  EXPECT_TRUE(derives(grammar, "Hm.</think>Hello"));
  EXPECT_TRUE(derives(grammar, "</think>"));
  EXPECT_TRUE(derives(grammar, "a < b</think>Let me see." + calls(invoke("now", "\n"))));
  EXPECT_FALSE(derives(grammar, "no end of thought"));
  EXPECT_FALSE(derives(grammar, "</think>Let me see.\n\n<｜DSML｜function_calls>\nnow"));
}

TEST(AnswerGrammar, JsonAfterTheReasoning) {
  const Json schema = Json::parse(R"({"type": "object", "properties": {"a": {"type": "null"}},
                                      "required": ["a"]})");
  const Grammar grammar = answer_grammar({.thinking_mode = ThinkingMode::kThinking,
                                          .kind = Kind::kJson,
                                          .schema = schema,
                                          .is_strict = true});
  EXPECT_TRUE(derives(grammar, "{ is a brace</think>{\"a\": null}"));
  EXPECT_FALSE(derives(grammar, "</think>{}"));
  EXPECT_FALSE(derives(grammar, "</think>{\"a\": null} "));
  const Grammar either =
      answer_grammar({.thinking_mode = ThinkingMode::kChat, .kind = Kind::kJson, .tools = tools()});
  EXPECT_TRUE(derives(either, "{\"x\": []}"));
  EXPECT_TRUE(derives(either, calls(invoke("now", "\n"))));
  EXPECT_FALSE(derives(either, "text"));
}

// Whatever is sampled, the parser reads it back as calls.
TEST(AnswerGrammar, EveryDerivedCallParses) {
  GrammarMatcher matcher(std::make_shared<const Grammar>(answer_grammar(
      {.thinking_mode = ThinkingMode::kChat, .kind = Kind::kCalls, .tools = tools()})));
  base::Random random(3, 0);
  int num_ended = 0;
  for (int i = 0; i < 200; ++i) {
    const std::string text = random_text(matcher, random, 2000);
    if (text.empty()) continue;
    ++num_ended;
    const Json message = parse_message(text + std::string(markup::kEos), ThinkingMode::kChat);
    ASSERT_FALSE(message.at("tool_calls").empty()) << text;
    for (const Json& call : message.at("tool_calls"))
      EXPECT_TRUE(Json::parse(call.at("function").at("arguments").get<std::string>()).is_object());
  }
  EXPECT_GT(num_ended, 50);
}

TEST(AnswerGrammar, StrictToolsRefuseWhatCannotBeHeld) {
  Json strict = tools();
  strict[0]["function"]["strict"] = true;
  strict[0]["function"]["parameters"]["properties"]["days"]["not"] = {{"const", 3}};
  try {
    answer_grammar({.kind = Kind::kCalls, .tools = strict});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              "tools[0].function.parameters.days.not cannot be held to while sampling; leave it "
              "out, or set \"strict\" to false");
  }
  EXPECT_THROW(answer_grammar({.kind = Kind::kCalls}), Error);
  const auto error = [](const char* parameters, bool is_strict) {
    Json tool = {{"name", "f"}, {"strict", is_strict}, {"parameters", Json::parse(parameters)}};
    try {
      answer_grammar({.kind = Kind::kCalls, .tools = {{{"function", tool}}}});
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("taken");
  };
  const std::string unheld =
      " cannot be held to while sampling; leave it out, or set \"strict\" to false";
  const std::string x = "tools[0].function.parameters.x.";
  const std::pair<const char*, std::string> strings[] = {
      {R"({"type": "string", "pattern": "^a+$", "maxLength": 3})", x + "maxLength beside pattern"},
      {R"({"type": "string", "pattern": "a\\b"})",
       x + "pattern \"a\\\\b\": a back reference, boundary, property or unknown escape at "
           "character 3"},
      {R"({"pattern": "^a+$"})", x + "pattern without a type"},
      {R"({"minimum": 3})", x + "minimum without a type"},
      {R"({"type": "string", "format": "colour"})",
       x + "format \"colour\" (known are " + std::string(kKnownFormats) + ")"},
      {R"({"anyOf": [{"type": "integer"}], "minimum": 3})", x + "minimum beside anyOf"},
      {R"({"anyOf": [{"type": "string"}], "type": "string"})", x + "type beside anyOf"},
      {R"({"enum": ["a"], "minLength": 3})", x + "minLength beside enum"},
      {R"({"allOf": [{"type": "string"}, {}]})", x + "allOf of 2 schemas"}};
  for (const auto& [schema, place] : strings) {
    const std::string parameters = R"({"properties": {"x": )" + std::string(schema) + "}}";
    EXPECT_EQ(error(parameters.c_str(), true), place + unheld);
    EXPECT_EQ(error(parameters.c_str(), false), "taken") << schema;
  }
  const char* const kMissing = R"({"properties": {"x": {}}, "required": ["y"]})";
  EXPECT_EQ(error(kMissing, true),
            "tools[0].function.parameters.required names \"y\"; expected one of the properties");
  EXPECT_EQ(error(kMissing, false), "taken");
  const Json circle = Json::parse(R"([{"type": "function", "function": {"name": "f", "parameters":
      {"properties": {"x": {"anyOf": [{"$ref": "#/properties/x"}, {"type": "null"}]}}}}}])");
  EXPECT_THROW(answer_grammar({.kind = Kind::kCalls, .tools = circle}), Error);
}

TEST(AnswerGrammar, StrictStringsAndNumbersAreHeldToTheirBounds) {
  const Json function = {{"name", "f"}, {"strict", true}, {"parameters", Json::parse(R"({
      "type": "object", "required": ["mail", "code", "name", "share"], "properties": {
        "mail": {"type": "string", "format": "email"},
        "code": {"type": ["string", "null"], "pattern": "^[A-Z]{2}\\d$"},
        "name": {"type": "string", "minLength": 1, "maxLength": 3},
        "share": {"type": "number", "minimum": 0, "maximum": 1}}})")}};
  const Grammar grammar =
      answer_grammar({.kind = Kind::kCalls, .tools = {{{"function", function}}}});
  const auto call = [](const std::string& mail, const std::string& code, const std::string& name,
                       const std::string& share) {
    return calls(invoke("f", parameter("mail", "true", mail) + code +
                                 parameter("name", "true", name) +
                                 parameter("share", "false", share)));
  };
  const std::string code = parameter("code", "true", "AB1");
  EXPECT_TRUE(derives(grammar, call("a@b.co", code, "<\"\n", "0.25")));
  const Json open = Json::parse(
      R"({"type": "object", "required": ["x"], "properties": {"x": {"type": "string", "minLength": 1}}})");
  const Grammar free = answer_grammar(
      {.kind = Kind::kCalls, .tools = {{{"function", {{"name", "f"}, {"parameters", open}}}}}});
  EXPECT_TRUE(derives(free, calls(invoke("f", parameter("x", "true", "a｜b")))));
  EXPECT_FALSE(derives(free, calls(invoke("f", parameter("x", "true", "")))));
  EXPECT_TRUE(derives(grammar, call("a@b.co", parameter("code", "false", "null"), "a", "1")));
  EXPECT_FALSE(derives(grammar, call("a@b", code, "a", "1")));
  EXPECT_FALSE(derives(grammar, call("a@b.co", parameter("code", "true", "AB12"), "a", "1")));
  EXPECT_FALSE(derives(grammar, call("a@b.co", code, "", "1")));
  EXPECT_FALSE(derives(grammar, call("a@b.co", code, "abcd", "1")));
  EXPECT_FALSE(derives(grammar, call("a@b.co", code, "a", "1.5")));
}

// What would close a tag, or a value, too early.
TEST(AnswerGrammar, NamesAndValuesHoldNoMarkup) {
  const auto error = [](const std::string& name, const std::string& property, const Json& schema) {
    const Json parameters = {{"type", "object"}, {"properties", {{property, schema}}}};
    const Json function = {{"name", name}, {"parameters", parameters}};
    try {
      answer_grammar({.kind = Kind::kCalls, .tools = {{{"function", function}}}});
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("taken");
  };
  const std::string expected =
      "; expected a name without quotes, angle brackets, new lines and markup";
  EXPECT_EQ(error("f", "a b", {}), "taken");
  EXPECT_EQ(error("f\">", "a", {}), R"(tools[0].function.name is "f\">")" + expected);
  EXPECT_EQ(error("f", "a\" string=\"true\">", {}),
            R"(tools[0].function.parameters's property is "a\" string=\"true\">")" + expected);
  EXPECT_EQ(error("f", "a", {{"enum", {"x</｜DSML｜parameter>\n"}}}),
            "tools[0].function.parameters.a lists \"x</｜DSML｜parameter>\\n\", which holds the "
            "markup of calls");
  EXPECT_EQ(error("f", "a", {{"enum", Json::array()}}),
            "tools[0].function.parameters.a.enum is []; expected an array that is not empty");
}

}  // namespace
}  // namespace fathom::text
