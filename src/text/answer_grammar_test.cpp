#include "text/answer_grammar.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "text/chat_markup.h"
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
  try {
    answer_grammar({.kind = Kind::kCalls, .tools = strict});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(
        std::string(error.what()),
        "tools[0].function.parameters.days.minimum cannot be held to while sampling; leave it "
        "out, or set \"strict\" to false");
  }
  EXPECT_THROW(answer_grammar({.kind = Kind::kCalls}), Error);
  const Json circle = Json::parse(R"([{"type": "function", "function": {"name": "f", "parameters":
      {"properties": {"x": {"anyOf": [{"$ref": "#/properties/x"}, {"type": "null"}]}}}}}])");
  EXPECT_THROW(answer_grammar({.kind = Kind::kCalls, .tools = circle}), Error);
}

}  // namespace
}  // namespace fathom::text
