#include "text/streaming_chat_parser.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "base/random.h"
#include "text/chat_cases.h"

namespace fathom::text {
namespace {

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

std::vector<size_t> every_byte_of(const std::string& text) {
  std::vector<size_t> cuts(text.size());
  for (size_t i = 0; i < cuts.size(); ++i) cuts[i] = i;
  return cuts;
}

void expect_same_however_cut(const std::string& text, ThinkingMode mode, base::Random& random) {
  const Json whole = stream(text, mode, {});
  for (size_t first = 0; first <= text.size(); ++first) {
    EXPECT_EQ(stream(text, mode, {first}), whole) << text << " at " << first;
    for (size_t second = first; text.size() < 100 && second <= text.size(); ++second)
      EXPECT_EQ(stream(text, mode, {first, second}), whole) << text << first << " " << second;
  }
  EXPECT_EQ(stream(text, mode, every_byte_of(text)), whole) << text;
  for (int trial = 0; trial < 100; ++trial) {
    std::vector<size_t> cuts;
    for (size_t at = 0; at <= text.size(); at += random.below(12)) cuts.push_back(at);
    EXPECT_EQ(stream(text, mode, cuts), whole) << text;
  }
}

TEST(StreamingChatParser, EqualsTheStrictParserHoweverTheTextIsCut) {
  base::Random random(7);
  for (const Json& c : chat_cases("parse")) {
    const std::string text = c["completion"];
    if (!c.contains("error")) {
      EXPECT_EQ(stream(text, mode_of(c), {}), c["message"]) << c["name"];
    }
    expect_same_however_cut(text, mode_of(c), random);
  }
}

// Completions put together from the format's own pieces, most of them malformed.
TEST(StreamingChatParser, AgreesWithTheStrictParserOnShuffledMarkup) {
  const std::vector<std::string> pieces = {"</think>",
                                           "\n\n<｜DSML｜function_calls>\n",
                                           "<｜DSML｜invoke name=\"f\">\n",
                                           "</｜DSML｜invoke>\n",
                                           "<｜DSML｜parameter name=\"a\" string=\"true\">",
                                           "</｜DSML｜parameter>\n",
                                           "\n",
                                           "你<",
                                           "</｜DSML｜function_calls>",
                                           "<｜end▁of▁sentence｜>"};
  const std::vector<size_t> well_formed = {7, 1, 2, 4, 7, 5, 3, 8, 9};
  base::Random random(7);
  int num_accepted = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    std::string text;
    for (size_t piece : well_formed) {
      const uint64_t fate = random.below(16);  // kept, lost, doubled or another
      if (fate != 0) text += pieces[fate == 1 ? random.below(pieces.size()) : piece];
      if (fate == 2) text += pieces[piece];
    }
    const Json streamed = stream(text, ThinkingMode::kChat, {});
    EXPECT_EQ(stream(text, ThinkingMode::kChat, every_byte_of(text)), streamed) << text;
    try {
      EXPECT_EQ(parse_message(text, ThinkingMode::kChat), streamed) << text;
      ++num_accepted;
    } catch (const Error&) {
    }
  }
  EXPECT_GT(num_accepted, 300);
  EXPECT_LT(num_accepted, 2700);
}

TEST(StreamingChatParser, TheEndMarkerEndsEverything) {
  const std::string eos = "<｜end▁of▁sentence｜>";
  EXPECT_EQ(stream("a" + eos + "b", ThinkingMode::kChat, {})["content"], "a");
  const Json thought = stream("a" + eos + "b</think>c", ThinkingMode::kThinking, {});
  EXPECT_EQ(thought["reasoning_content"], "a");
  EXPECT_EQ(thought["content"], "");
}

TEST(StreamingChatParser, MalformedMarkupIsGivenBackAsContent) {
  const std::string open = "\n\n<｜DSML｜function_calls>\n";
  for (const std::string& broken :
       {open + "no call", open + "<｜DSML｜invoke name=\"f\">\nx</｜DSML｜invoke>\n",
        open + "<｜DSML｜invoke name=\"f\">\n<｜DSML｜param", open,
        std::string("\n\n<｜DSML｜fun")}) {
    const std::string text = "hi" + broken;
    for (const auto& cuts : {std::vector<size_t>{}, every_byte_of(text)}) {
      const Json message = stream(text, ThinkingMode::kChat, cuts);
      EXPECT_EQ(message["content"], text);
      EXPECT_TRUE(message["tool_calls"].empty());
    }
  }
}

TEST(StreamingChatParser, ACallThatALimitHasCutIsDropped) {
  const std::string open = "\n\n<｜DSML｜function_calls>\n",
                    call = "<｜DSML｜invoke name=\"f\">\n\n</｜DSML｜invoke>\n";
  const std::string text = "hi" + open + call + call;
  for (size_t size = 0; size <= text.size(); ++size) {
    StreamingChatParser parser(ThinkingMode::kChat);
    Collected all;
    all.add(parser.push(text.substr(0, size)));
    all.add(parser.finish(/*was_cut=*/true));
    EXPECT_EQ(all.content.find("DSML"), std::string::npos) << all.content;
    EXPECT_EQ(all.content.substr(0, 2), text.substr(0, std::min<size_t>(size, 2)));
    EXPECT_EQ(all.calls.size(), size < 2 + open.size() + call.size() ? 0
                                : size < text.size()                 ? 1
                                                                     : 2);
  }
  StreamingChatParser parser(ThinkingMode::kChat);
  EXPECT_EQ(parser.push("a < b\n\n<").content + parser.finish(true).content, "a < b\n\n<");
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

}  // namespace
}  // namespace fathom::text
