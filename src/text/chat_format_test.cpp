#include "text/chat_format.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "base/random.h"
#include "text/python_json.h"

namespace fathom::text {
namespace {

// A vector, not a part of a temporary: the loops below must not outlive what they walk.
std::vector<Json> cases(const char* kind) {
  const Json all = base::read_json_file(std::string(FATHOM_ROOT) + "/tests/data/chat.json");
  std::vector<Json> result(all.at(kind).begin(), all.at(kind).end());
  EXPECT_GT(result.size(), 5u);
  return result;
}

TEST(ChatFormat, EncodesAsThePublishedEncoder) {
  for (const Json& c : cases("encode")) {
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

ThinkingMode mode_of(const Json& c) {
  return c["mode"] == "chat" ? ThinkingMode::kChat : ThinkingMode::kThinking;
}

TEST(ChatFormat, ParsesAsThePublishedEncoder) {
  for (const Json& c : cases("parse")) {
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
}

// Everything the streaming parser gave out, put together in the strict parser's form.
struct Collected {
  std::string reasoning, content;
  Json calls = Json::array();

  void add(const ChatDelta& delta) {
    reasoning += delta.reasoning_content;
    content += delta.content;
    for (const auto& call : delta.tool_calls)
      calls.push_back({{"type", "function"},
                       {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  }
  Json message() const {
    return {{"role", "assistant"},
            {"content", content},
            {"reasoning_content", reasoning},
            {"tool_calls", calls}};
  }
};

Json stream(const std::string& text, ThinkingMode mode, const std::vector<size_t>& cuts) {
  StreamingChatParser parser(mode);
  Collected all;
  size_t begin = 0;
  for (size_t cut : cuts) {
    all.add(parser.push(std::string_view(text).substr(begin, cut - begin)));
    begin = cut;
  }
  all.add(parser.push(std::string_view(text).substr(begin)));
  all.add(parser.finish());
  return all.message();
}

TEST(StreamingChatParser, EqualsTheStrictParserHoweverTheTextIsCut) {
  for (const Json& c : cases("parse")) {
    const std::string text = c["completion"];
    const Json whole = stream(text, mode_of(c), {});
    if (!c.contains("error")) {
      EXPECT_EQ(whole, c["message"]) << c["name"];
    }
    for (size_t cut = 0; cut <= text.size(); ++cut)
      EXPECT_EQ(stream(text, mode_of(c), {cut}), whole) << c["name"] << " at " << cut;
    std::vector<size_t> every_byte;
    for (size_t i = 1; i < text.size(); ++i) every_byte.push_back(i);
    EXPECT_EQ(stream(text, mode_of(c), every_byte), whole) << c["name"];
  }
}

TEST(StreamingChatParser, MalformedMarkupIsGivenBackAsContent) {
  const std::string open = "\n\n<｜DSML｜function_calls>\n";
  for (const std::string& broken :
       {open + "no call", open + "<｜DSML｜invoke name=\"f\">\nx</｜DSML｜invoke>\n",
        open + "<｜DSML｜invoke name=\"f\">\n<｜DSML｜param", open,
        std::string("\n\n<｜DSML｜fun")}) {
    const std::string text = "hi" + broken;
    std::vector<size_t> every_byte;
    for (size_t i = 1; i < text.size(); ++i) every_byte.push_back(i);
    for (const auto& cuts : {std::vector<size_t>{}, every_byte}) {
      const Json message = stream(text, ThinkingMode::kChat, cuts);
      EXPECT_EQ(message["content"], text);
      EXPECT_TRUE(message["tool_calls"].empty());
    }
  }
}

TEST(StreamingChatParser, NeverShowsPartOfAMarkerOrCharacter) {
  StreamingChatParser parser(ThinkingMode::kThinking);
  EXPECT_EQ(parser.push("so</th").reasoning_content, "so");
  EXPECT_EQ(parser.push("ink>an").content, "an");
  EXPECT_EQ(parser.push("\n\n<｜DSML").content, "");
  EXPECT_EQ(parser.push(" x").content, "\n\n<｜DSML x");
  EXPECT_EQ(parser.push("\xe4\xbd").content, "");
  EXPECT_EQ(parser.push("\xa0<｜end").content, "你");
  EXPECT_EQ(parser.finish().content, "<｜end");
}

TEST(PythonJson, PrintsAsPythonDoes) {
  const auto printed = [](const char* text) {
    return python_json(parse_json_exactly(text, "test"));
  };
  EXPECT_EQ(printed(R"({"a":[1,2.50,1e3,-0.0],"b":null,"c":true})"),
            R"({"a": [1, 2.5, 1000.0, -0.0], "b": null, "c": true})");
  EXPECT_EQ(printed("[1e16, 1e15, 1e-5, 0.0001, 123456789012345678901234567890]"),
            "[1e+16, 1000000000000000.0, 1e-05, 0.0001, 123456789012345678901234567890]");
  EXPECT_EQ(printed(R"(["\u4f60\n\"\u0001\u007f"])"), "[\"你\\n\\\"\\u0001\x7f\"]");
  EXPECT_EQ(printed("[{}, []]"), "[{}, []]");
}

}  // namespace
}  // namespace fathom::text
