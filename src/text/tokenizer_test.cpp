#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/random.h"
#include "text/test_tokenizers.h"
#include "text/utf8.h"

namespace fathom::text {
namespace {

Tokenizer small_tokenizer() { return Tokenizer::parse(small_tokenizer_json().dump(), "small"); }

class DeepSeekTokenizer : public testing::Test {
 protected:
  static void SetUpTestSuite() { tokenizer_ = new Tokenizer(load_deepseek_tokenizer()); }
  static void TearDownTestSuite() { delete std::exchange(tokenizer_, nullptr); }
  static inline const Tokenizer* tokenizer_ = nullptr;
};

TEST_F(DeepSeekTokenizer, GoldenCases) {
  const Json cases = base::read_json_file(FATHOM_ROOT "/tests/data/tokenizer_cases.json");
  ASSERT_GE(cases.size(), 30u);
  for (const Json& c : cases) {
    const auto text = c.at("text").get<std::string>();
    const auto ids = c.at("ids").get<std::vector<TokenId>>();
    EXPECT_EQ(tokenizer_->encode(text), ids) << text;
    EXPECT_EQ(tokenizer_->decode(ids), text);
  }
}

TEST_F(DeepSeekTokenizer, KnowsItsVocabulary) {
  EXPECT_EQ(tokenizer_->vocab_size(), 128815);
  EXPECT_EQ(tokenizer_->find("<｜User｜>"), 128803);
  EXPECT_EQ(tokenizer_->find(" the"), 270);
  EXPECT_EQ(tokenizer_->find("no such token"), std::nullopt);
  EXPECT_TRUE(tokenizer_->is_special(0));
  EXPECT_FALSE(tokenizer_->is_special(128803));  // as the file says
  EXPECT_FALSE(tokenizer_->is_special(-1));
}

TEST_F(DeepSeekTokenizer, AnyBytesRoundTrip) {
  base::Random random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes;
    const auto size = random.below(100);
    // Few different bytes, so that valid, broken and cut characters all come up.
    const std::string alphabet = "a <\xE4\xB8\x96\xF0\x9F\xFF\xC3 1\n";
    for (size_t i = 0; i < size; ++i) bytes += alphabet[random.below(alphabet.size())];
    ASSERT_EQ(tokenizer_->decode(tokenizer_->encode(bytes)), bytes);
  }
}

// One piece of a megabyte must take the heap's n log n, not n squared.
TEST_F(DeepSeekTokenizer, LongPieces) {
  const std::string eight(1 << 20, 'a');
  const std::vector<TokenId> ids = tokenizer_->encode(eight);
  EXPECT_EQ(tokenizer_->decode(ids), eight);
  EXPECT_EQ(ids, std::vector<TokenId>((1 << 20) / 8, 89086));
  const std::string spaces(1 << 20, ' ');
  EXPECT_EQ(tokenizer_->decode(tokenizer_->encode(spaces + "x")), spaces + "x");
}

// Threads share what the tokenizer remembers of pieces.
TEST_F(DeepSeekTokenizer, ThreadsAgree) {
  base::Random random(11);
  std::string text;
  for (int i = 0; i < 50000; ++i) {
    for (auto n = random.below(9) + 1; n > 0; --n) text += static_cast<char>('a' + random.below(5));
    text += ' ';
  }
  std::vector<std::vector<TokenId>> ids(4);
  std::vector<std::thread> threads;
  for (auto& mine : ids) threads.emplace_back([&] { mine = tokenizer_->encode(text); });
  for (auto& thread : threads) thread.join();
  for (const auto& mine : ids) EXPECT_EQ(mine, ids[0]);
  EXPECT_EQ(tokenizer_->encode(text), ids[0]);
  EXPECT_EQ(tokenizer_->decode(ids[0]), text);
}

TEST(Tokenizer, MergesByRank) {
  const Tokenizer tokenizer = small_tokenizer();
  EXPECT_EQ(tokenizer.encode("hello"), (std::vector<TokenId>{258, 'o'}));
  EXPECT_EQ(tokenizer.encode("hel"), (std::vector<TokenId>{256, 'l'}));
  EXPECT_EQ(tokenizer.encode("lll"), (std::vector<TokenId>{257, 'l'}));  // the leftmost pair
  EXPECT_EQ(tokenizer.encode(""), std::vector<TokenId>{});
}

// Short pieces are merged by scanning, long ones through a heap: both must agree.
TEST(Tokenizer, ShortAndLongPiecesMergeAlike) {
  const Tokenizer tokenizer = small_tokenizer();
  std::vector<TokenId> expected;
  std::string text;
  for (int i = 0; i < 40; ++i) {
    text += "hellhelo";
    for (const TokenId id : {258, 256, int{'l'}, int{'o'}}) expected.push_back(id);
    EXPECT_EQ(tokenizer.encode(text), expected) << text.size();
  }
}

TEST(Tokenizer, AddedTokensFirstLeftmostLongest) {
  const Tokenizer tokenizer = small_tokenizer();
  EXPECT_EQ(tokenizer.encode("he<a><b>he"), (std::vector<TokenId>{256, 260, 256}));
  EXPECT_EQ(tokenizer.encode("<a><a><b"), (std::vector<TokenId>{259, 259, '<', 'b'}));
  EXPECT_EQ(tokenizer.find("<a>"), 259);
  EXPECT_TRUE(tokenizer.is_special(259));
  EXPECT_FALSE(tokenizer.is_special(260));
}

// " ?\p{L}+" would take the last space too if a piece of white space saw what follows the marker.
TEST(Tokenizer, LookaheadEndsWithThePiece) {
  EXPECT_EQ(small_tokenizer().encode("  <a>he"), (std::vector<TokenId>{' ', ' ', 259, 256}));
}

TEST(Tokenizer, DecodeRefusesUnknownIds) {
  const Tokenizer tokenizer = small_tokenizer();
  for (const TokenId id : {-1, 261, 1 << 30}) {
    try {
      tokenizer.decode(std::vector<TokenId>{id});
      FAIL() << id;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()),
                fmt::format("token id {} is not in the vocabulary of 261 tokens", id));
    }
  }
}

// Bytes one token at a time are every possible split position at once; pairs of tokens of the real
// vocabulary come in the test after.
TEST(StreamingDecoder, NeverEmitsPartOfACharacter) {
  const Tokenizer tokenizer = small_tokenizer();
  const std::string texts[] = {
      "plain",
      "h\u00e9llo \u4e16\u754c \U0001F600\U0001F469\u200D\U0001F469",
      "a\xF1\x80\x80\xE1\x80\xC2"
      "b\x80"
      "c\x80\xBF"
      "d",
      "cut off \xF0\x9F\x98",
      "\xED\xA0\x80\xC0\xAF",
  };
  for (const std::string& text : texts) {
    StreamingDecoder decoder(tokenizer);
    std::string streamed;
    for (const char c : text) {
      const std::string part = decoder.push(static_cast<uint8_t>(c));
      EXPECT_EQ(valid_utf8_prefix(part), part.size());
      streamed += part;
    }
    streamed += decoder.finish();
    EXPECT_EQ(streamed, replace_invalid_utf8(text));
    EXPECT_EQ(decoder.finish(), "");
  }
}

TEST(StreamingDecoder, EmitsACharacterWithItsLastByte) {
  StreamingDecoder decoder(small_tokenizer());
  EXPECT_EQ(decoder.push(0xF0), "");
  EXPECT_EQ(decoder.push(0x9F), "");
  EXPECT_EQ(decoder.push(0x98), "");
  EXPECT_EQ(decoder.push(0x80), "\U0001F600");
  EXPECT_EQ(decoder.push(0xE4), "");
  EXPECT_EQ(decoder.push('a'), "\uFFFDa");
  EXPECT_EQ(decoder.push(259), "<a>");
  EXPECT_EQ(decoder.push(0xC3), "");
  EXPECT_EQ(decoder.finish(), "\uFFFD");
}

TEST_F(DeepSeekTokenizer, StreamsWhatItDecodes) {
  const std::string text =
      "🗓️👩‍👩‍👧 emoji 漢字, ñandú 😀😀 안녕하세요 세계 "
      "<｜User｜>hi";
  StreamingDecoder decoder(*tokenizer_);
  std::string streamed;
  for (const TokenId id : tokenizer_->encode(text)) {
    const std::string part = decoder.push(id);
    EXPECT_EQ(valid_utf8_prefix(part), part.size());
    streamed += part;
  }
  EXPECT_EQ(streamed + decoder.finish(), text);
}

}  // namespace
}  // namespace fathom::text
