#include "text/chat_format.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "text/chat_cases.h"

namespace fathom::text {
namespace {

TEST(ChatFormat, EncodesAsThePublishedEncoder) {
  for (const Json& c : chat_cases("encode")) {
    const auto encode = [&] {
      return encode_messages(c["messages"], parse_chat_options(c["options"]));
    };
    if (c.contains("error")) {
      EXPECT_THROW(encode(), Error) << c["name"];
    } else {
      EXPECT_EQ(encode(), c["text"].get<std::string>()) << c["name"];
    }
  }
}

TEST(ChatFormat, ParsesAsThePublishedEncoder) {
  for (const Json& c : chat_cases("parse")) {
    const std::string completion = c["completion"];
    if (c.contains("error")) {
      EXPECT_THROW(parse_message(completion, mode_of(c)), Error) << c["name"];
    } else {
      EXPECT_EQ(parse_message(completion, mode_of(c)), c["message"]) << c["name"];
    }
  }
}

TEST(ChatFormat, ErrorsNameTheMessage) {
  const auto error = [](const char* messages) -> std::string {
    try {
      encode_messages(Json::parse(messages), {});
    } catch (const Error& e) {
      return e.what();
    }
    return "encoded";
  };
  EXPECT_EQ(
      error(R"([{"role": "robot", "content": "x"}])"),
      "messages[0].role: \"robot\" is not known; expected system, developer, user, assistant or "
      "tool");
  EXPECT_EQ(error(R"([{"role": "user", "content": 3}])"),
            "messages[0].content: expected a string, not number");
  EXPECT_EQ(error(R"([{"content": "x"}])"), "messages[0]: expected an object with a \"role\"");
  EXPECT_EQ(error(R"([{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}])"),
            "messages[0].role: a developer message before the last user message cannot be encoded "
            "with drop_thinking");
  EXPECT_EQ(error(R"([{"role": "assistant", "tool_calls": [
                       {"function": {"name": "f", "arguments": "[1]"}}]}])"),
            "messages[0].tool_calls: arguments of f must be a JSON object");
}

TEST(ChatFormat, ContextGivesPositionsOnly) {
  ChatOptions options;
  options.context = Json::parse(R"([{"role": "user", "content": "q"},
      {"role": "assistant", "reasoning_content": "r",
       "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}])");
  EXPECT_EQ(encode_messages(Json::parse(R"([{"role": "tool", "content": "o"}])"), options),
            "\n\n<function_results>\n<result>o</result>\n</function_results>\n\n<think>");
}

TEST(ChatFormat, OptionsAreKnownOrRefused) {
  const auto options = parse_chat_options(
      Json::parse(R"({"thinking_mode": "chat", "drop_thinking": false, "context": []})"));
  EXPECT_EQ(options.thinking_mode, ThinkingMode::kChat);
  EXPECT_FALSE(options.drop_thinking);
  EXPECT_TRUE(options.add_default_bos_token);
  for (const char* wrong :
       {R"({"thinking": "chat"})", R"({"thinking_mode": "loud"})", R"({"drop_thinking": 1})", "[]"})
    EXPECT_THROW(parse_chat_options(Json::parse(wrong)), Error) << wrong;
}

const std::string kOpen = "\n\n<｜DSML｜function_calls>\n", kClose = "</｜DSML｜function_calls>";

TEST(ChatFormat, ParameterValuesAreFreeText) {
  const std::string value =
      "</｜DSML｜invoke>\n<｜DSML｜invoke name=\"g\">\n<｜DSML｜parameter \" ";
  const Json message =
      parse_message(kOpen +
                        "<｜DSML｜invoke name=\"f\">\n"
                        "<｜DSML｜parameter name=\"a\" string=\"true\">" +
                        value + "</｜DSML｜parameter>\n</｜DSML｜invoke>\n" + kClose,
                    ThinkingMode::kChat);
  const Json& function = message["tool_calls"].at(0)["function"];
  EXPECT_EQ(Json::parse(function["arguments"].get<std::string>()), Json({{"a", value}}));
}

TEST(ChatFormat, WhatPythonTakesForFalseIsNoResponseFormat) {
  for (const char* empty : {"null", "false", "0", "0.0", "\"\"", "{}", "[]"}) {
    const Json message = {
        {"role", "system"}, {"content", "s"}, {"response_format", Json::parse(empty)}};
    EXPECT_EQ(encode_messages(Json::array({message}), {}), "<｜begin▁of▁sentence｜>s") << empty;
  }
}

TEST(ChatFormat, RefusesCallsThatAreCutOff) {
  const std::string whole = kOpen +
                            "<｜DSML｜invoke name=\"f\">\n"
                            "<｜DSML｜parameter name=\"a\" string=\"true\">1</｜DSML｜parameter>\n"
                            "</｜DSML｜invoke>\n" +
                            kClose;
  EXPECT_NO_THROW(parse_message(whole, ThinkingMode::kChat));
  for (size_t length = 0; length < whole.size(); ++length)
    EXPECT_THROW(parse_message(whole.substr(0, length), ThinkingMode::kChat), Error) << length;
}

}  // namespace
}  // namespace fathom::text
