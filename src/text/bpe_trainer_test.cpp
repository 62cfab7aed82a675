#include "text/bpe_trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/random.h"
#include "text/tokenizer.h"

namespace fathom::text {
namespace {

// Words made of a few syllables: enough structure to have frequent pairs, no two runs alike by
// luck.
std::string invented_text(uint64_t seed, int num_words) {
  const char* syllables[] = {"ba", "ko", "ri", "ten", "lo", "mu", "sha", "\u00e9l", "12", "nor"};
  base::Random random(seed);
  std::string text;
  for (int i = 0; i < num_words; ++i) {
    for (uint64_t n = random.below(3) + 1; n > 0; --n) text += syllables[random.below(10)];
    text += random.below(12) == 0 ? ".\n" : " ";
  }
  return text;
}

TokenizerParts train(const std::vector<std::string>& texts, int vocab_size) {
  BpeTrainerOptions options;
  options.vocab_size = vocab_size;
  BpeTrainer trainer(options);
  for (const std::string& text : texts) trainer.add(text);
  return trainer.train();
}

// The definition, without increments or heap: count all pairs anew before every merge.
std::vector<BpeMerge> slow_merges(const std::string& text, const TokenizerParts& start,
                                  size_t num_merges) {
  std::vector<std::vector<TokenId>> pieces;
  std::vector<std::string> tokens(start.tokens.begin(), start.tokens.begin() + 259);
  PreTokenizer pre_tokenizer(kDeepSeekSplits);
  PreTokenizer::Cursor cursor(pre_tokenizer, text);
  for (std::string_view piece; cursor.next(&piece);) {
    std::vector<TokenId> ids;
    for (const char c : piece) {
      const std::string byte(1, c);
      ids.push_back(std::find(tokens.begin() + 3, tokens.end(), byte) - tokens.begin());
    }
    pieces.push_back(ids);
  }
  std::vector<BpeMerge> merges;
  while (merges.size() < num_merges) {
    std::map<std::pair<TokenId, TokenId>, int64_t> counts;
    for (const auto& ids : pieces) {
      for (size_t i = 0; i + 1 < ids.size(); ++i) ++counts[{ids[i], ids[i + 1]}];
    }
    auto best = counts.end();
    for (auto it = counts.begin(); it != counts.end(); ++it) {
      if (tokens[it->first.first].size() + tokens[it->first.second].size() > 16) continue;
      if (best == counts.end() || it->second > best->second) best = it;
    }
    const auto [left, right] = best->first;
    const auto id = static_cast<TokenId>(tokens.size());
    merges.push_back({left, right, id});
    tokens.push_back(tokens[left] + tokens[right]);
    for (auto& ids : pieces) {
      std::vector<TokenId> merged;
      for (size_t i = 0; i < ids.size(); ++i) {
        const bool is_pair = i + 1 < ids.size() && ids[i] == left && ids[i + 1] == right;
        merged.push_back(is_pair ? id : ids[i]);
        i += is_pair;
      }
      ids = merged;
    }
  }
  return merges;
}

TEST(BpeTrainer, AgreesWithTheDefinition) {
  // Runs of one letter try overlapping pairs.
  const std::string text = invented_text(3, 2000) + " aaaaaaa aaaa aaa " + std::string(99, '=');
  const TokenizerParts parts = train({text}, 259 + 150 + 8);
  const std::vector<BpeMerge> expected = slow_merges(text, parts, 150);
  ASSERT_EQ(parts.merges.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(parts.merges[i].left, expected[i].left) << i;
    EXPECT_EQ(parts.merges[i].right, expected[i].right) << i;
    EXPECT_EQ(parts.merges[i].merged, expected[i].merged) << i;
  }
}

TEST(BpeTrainer, DependsOnCountsAlone) {
  const std::string a = invented_text(1, 3000), b = invented_text(2, 3000);
  const std::string once = write_tokenizer_json(train({a, b}, 500));
  EXPECT_EQ(once, write_tokenizer_json(train({a, b}, 500)));
  EXPECT_EQ(once, write_tokenizer_json(train({b, a}, 500)));
}

TEST(BpeTrainer, FilesReloadAndCompress) {
  const std::filesystem::path folder = testing::TempDir() + "fathom_bpe_trainer_test";
  const std::string text = invented_text(5, 5000) + "invalid \xFF byte";
  std::filesystem::create_directories(folder);
  base::write_file_atomically(folder / "text.txt", text);
  TrainTokenizerOptions options;
  options.inputs = {folder / "text.txt"};
  options.output = folder / "out";
  options.bpe.vocab_size = 400;
  train_tokenizer(options);

  const Tokenizer tokenizer = Tokenizer::load(folder / "out" / "tokenizer.json");
  EXPECT_EQ(tokenizer.vocab_size(), 400);
  EXPECT_EQ(tokenizer.find("<｜begin▁of▁sentence｜>"), 0);
  EXPECT_EQ(tokenizer.find("<｜end▁of▁sentence｜>"), 1);
  EXPECT_EQ(tokenizer.find("<｜▁pad▁｜>"), 2);
  EXPECT_EQ(tokenizer.find("a"), 67);  // the bytes stand where DeepSeek-V3 has them
  EXPECT_EQ(tokenizer.find(" "), 223);
  EXPECT_EQ(tokenizer.find("<｜User｜>"), 392);
  EXPECT_EQ(tokenizer.find("</think>"), 395);
  EXPECT_EQ(tokenizer.find("｜DSML｜"), 399);
  EXPECT_TRUE(tokenizer.is_special(1));
  for (TokenId id = 0; id < 400; ++id) EXPECT_NO_THROW(tokenizer.token_bytes(id)) << id;

  const std::vector<TokenId> ids = tokenizer.encode(text);
  EXPECT_EQ(tokenizer.decode(ids), text);
  EXPECT_LT(ids.size(), text.size() / 2);
  const Json config = base::read_json_file(folder / "out" / "tokenizer_config.json");
  EXPECT_EQ(config.at("bos_token"), "<｜begin▁of▁sentence｜>");
  std::filesystem::remove_all(folder);
}

TEST(BpeTrainer, RefusesWhatCannotWork) {
  try {
    train({"too little"}, 8192);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              "10 bytes of text give only 275 of 8192 tokens: more text or a smaller vocabulary");
  }
  EXPECT_THROW(train({"text"}, 266), Error);
}

}  // namespace
}  // namespace fathom::text
