#include "pretrain/fill_in_the_middle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/check.h"
#include "pretrain/test_data.h"
#include "pretrain/token_data.h"
#include "text/bpe_trainer.h"

namespace fathom::pretrain {
namespace {

using Tokens = std::vector<int64_t>;

constexpr int64_t kBos = 0, kEos = 1, kBegin = 101, kHole = 102, kEnd = 103;
const FimOptions kAlways{.rate = 1,
                         .seed = 7,
                         .bos_token_id = kBos,
                         .eos_token_id = kEos,
                         .tokens = {kBegin, kHole, kEnd}};

// A document of `count` different tokens from `first` on.
Tokens document(int64_t first, int64_t count) {
  Tokens tokens = {kBos};
  for (int64_t i = 0; i < count; ++i) tokens.push_back(first + i);
  tokens.push_back(kEos);
  return tokens;
}

Tokens joined(const std::vector<Tokens>& parts) {
  Tokens all;
  for (const Tokens& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

// prefix + middle + suffix of BOS begin prefix hole suffix end middle [EOS].
Tokens restored(const Tokens& tokens) {
  EXPECT_EQ(tokens[0], kBos);
  EXPECT_EQ(tokens[1], kBegin);
  const auto hole = std::find(tokens.begin(), tokens.end(), kHole);
  const auto end = std::find(hole, tokens.end(), kEnd);
  EXPECT_NE(end, tokens.end());
  const auto last = tokens.back() == kEos ? tokens.end() - 1 : tokens.end();
  return joined({{tokens.begin() + 2, hole}, {end + 1, last}, {hole + 1, end}});
}

TEST(FillInTheMiddle, ReordersAWholeDocumentAsPrefixSuffixMiddle) {
  // The second document, begun in the row, gives up what the first one's marks take.
  const Tokens row = joined({document(10, 9), document(30, 20)});
  std::set<Tokens> different;
  for (int64_t index = 0; index < 40; ++index) {
    const Tokens out = with_fill_in_the_middle(row, index, kAlways);
    ASSERT_EQ(out.size(), row.size());
    const auto second = out.begin() + 11 + 3;
    EXPECT_EQ(*(second - 1), kEos);
    EXPECT_EQ(restored({out.begin(), second}), (Tokens{10, 11, 12, 13, 14, 15, 16, 17, 18}));
    Tokens expected;
    for (int64_t i = 0; i < 15; ++i) expected.push_back(30 + i);
    EXPECT_EQ(restored({second, out.end()}), expected);
    different.insert(out);
  }
  EXPECT_GT(different.size(), 30u);  // the cuts are drawn for each row
}

TEST(FillInTheMiddle, IsAFunctionOfSeedAndRow) {
  const Tokens row = joined({document(10, 30), document(50, 30)});
  FimOptions options = kAlways;
  EXPECT_EQ(with_fill_in_the_middle(row, 5, options), with_fill_in_the_middle(row, 5, options));
  EXPECT_NE(with_fill_in_the_middle(row, 5, options), with_fill_in_the_middle(row, 6, options));
  options.seed = 8;
  EXPECT_NE(with_fill_in_the_middle(row, 5, options), with_fill_in_the_middle(row, 5, kAlways));
  options.rate = 0;
  EXPECT_EQ(with_fill_in_the_middle(row, 5, options), row);
}

TEST(FillInTheMiddle, TakesItsShareOfTheDocuments) {
  FimOptions options = kAlways;
  options.rate = 0.1;
  const Tokens row = joined({document(10, 20), document(40, 20), document(70, 20)});
  int64_t num_chosen = 0;
  for (int64_t index = 0; index < 2000; ++index) {
    const Tokens out = with_fill_in_the_middle(row, index, options);
    num_chosen += std::count(out.begin(), out.end(), kBegin);
  }
  EXPECT_NEAR(static_cast<double>(num_chosen) / 6000, 0.1, 0.015);
}

// A document's end whose beginning lies in another row, and documents too short to be cut.
TEST(FillInTheMiddle, LeavesTheRestAlone) {
  const Tokens row = joined({{20, 21, 22, 23, 24, kEos}, document(30, 2), document(40, 1)});
  EXPECT_EQ(with_fill_in_the_middle(row, 3, kAlways), row);
  const Tokens no_room = joined({{20, 21, 22, 23, 24, kEos}, {kBos, 5, 6, 7, 8}});
  EXPECT_EQ(with_fill_in_the_middle(no_room, 3, kAlways), no_room);
}

class FimTokenizer : public testing::Test {
 protected:
  void SetUp() override {
    base::write_file_atomically(folder_ / "text", "some text of some words, and some more text\n");
    text::train_tokenizer({.inputs = {folder_ / "text"},
                           .output = folder_ / "tokenizer",
                           .bpe = {.vocab_size = 270}});
  }
  std::filesystem::path folder_ = empty_folder("fim_" + this_test());
};

TEST_F(FimTokenizer, HasTheTokensWhereThisProjectLearnedIt) {
  const FimTokens tokens = read_fim_tokens(folder_ / "tokenizer");
  const std::set<int64_t> ids = {tokens.begin, tokens.hole, tokens.end};
  EXPECT_EQ(ids.size(), 3u);
  EXPECT_GE(*ids.begin(), 262);  // the last eight of 270
}

TEST_F(FimTokenizer, WithoutTheTokensIsRefusedByName) {
  const auto path = folder_ / "tokenizer/tokenizer.json";
  std::string json = base::read_file(path);
  const std::string token = "<｜fim▁hole｜>";
  for (size_t at = 0; (at = json.find(token, at)) != std::string::npos;)
    json.replace(at, token.size(), "<｜fim▁hale｜>");
  base::write_file_atomically(path, json);
  try {
    read_fim_tokens(folder_ / "tokenizer");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), path.string() +
                                ": has no token <｜fim▁hole｜>, which "
                                "\"training.fim_rate\" needs; set it to 0, or learn the tokenizer "
                                "anew with fathom train-tokenizer");
  }
}

TEST_F(FimTokenizer, ChangesTheRowsOfTraining) {
  write_synthetic_tokens(folder_ / "tokens");
  FimOptions options = kAlways;
  options.rate = 0.5;
  const TokenRows plain(folder_ / "tokens", "train", 64);
  const TokenRows reordered(folder_ / "tokens", "train", 64, options);
  ASSERT_EQ(plain.num_rows(), reordered.num_rows());
  int64_t num_changed = 0;
  for (int64_t i = 0; i < plain.num_rows(); ++i) {
    EXPECT_EQ(reordered.row(i), with_fill_in_the_middle(plain.row(i), i, options));
    num_changed += reordered.row(i) != plain.row(i);
  }
  EXPECT_GT(num_changed, plain.num_rows() / 3);
}

}  // namespace
}  // namespace fathom::pretrain
