#include "pretrain/token_data.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/check.h"
#include "pretrain/test_data.h"
#include "text/bpe_trainer.h"

namespace fathom::pretrain {
namespace {

namespace fs = std::filesystem;

// A corpus of two splits and a tokenizer learned from it.
class TokenShards : public testing::Test {
 protected:
  void SetUp() override {
    options_ = {folder_ / "text", folder_ / "tokenizer", folder_ / "tokens", 2000};
    fs::create_directories(options_.corpus);
    write_corpus("a first corpus");
    text::train_tokenizer(
        {.inputs = {options_.corpus}, .output = options_.tokenizer, .bpe = {.vocab_size = 300}});
  }

  void write_corpus(const std::string& manifest) {
    documents_.clear();
    for (const auto& [split, count] : {std::pair("train", 120), std::pair("validation", 15)}) {
      std::string lines;
      for (int i = 0; i < count; ++i) {
        documents_.push_back(fmt::format("{} document {}: ünïcode, the {}th of its kind\n{}", split,
                                         i, i, std::string(i % 7, 'x')));
        lines += Json({{"source", "s"}, {"path", "p"}, {"text", documents_.back()}}).dump() + "\n";
      }
      base::write_file_atomically(options_.corpus / (std::string(split) + "-00000.jsonl"), lines);
    }
    base::write_file_atomically(options_.corpus / "manifest.json", Json(manifest).dump());
  }

  // All tokens of a split, in order.
  std::vector<int32_t> tokens(const std::string& split) const {
    std::vector<int32_t> all;
    const Json summary = base::read_json_file(options_.output / "tokens.json");
    for (const auto& file : summary[split]["files"]) {
      const auto shard = model::Safetensors::open(options_.output / file.get<std::string>());
      const auto& view = shard.at("tokens");
      EXPECT_EQ(view.dtype, model::DType::kU16);
      const auto* data = reinterpret_cast<const uint16_t*>(view.data);
      all.insert(all.end(), data, data + view.num_elements());
    }
    return all;
  }

  fs::path folder_ = empty_folder(this_test());
  TokenizeOptions options_;
  std::vector<std::string> documents_;
};

TEST_F(TokenShards, RoundTrip) {
  tokenize_corpus(options_);
  const auto tokenizer = text::Tokenizer::load(options_.tokenizer / "tokenizer.json");
  std::vector<int32_t> all = tokens("train");
  const std::vector<int32_t> validation = tokens("validation");
  const Json summary = base::read_json_file(options_.output / "tokens.json");
  EXPECT_GT(summary["train"]["files"].size(), 1u);
  EXPECT_EQ(summary["train"]["num_tokens"], all.size());
  EXPECT_EQ(summary["validation"]["num_tokens"], validation.size());
  EXPECT_EQ(summary["validation"]["num_documents"], 15);
  all.insert(all.end(), validation.begin(), validation.end());

  auto at = all.begin();
  size_t num_validation_bytes = 0;
  for (size_t i = 0; i < documents_.size(); ++i) {
    if (i >= 120) num_validation_bytes += documents_[i].size();
    ASSERT_NE(at, all.end());
    EXPECT_EQ(*at, 0);  // BOS
    const auto end = std::find(at, all.end(), 1);
    ASSERT_NE(end, all.end());
    EXPECT_EQ(tokenizer.decode({at + 1, end}), documents_[i]);
    at = end + 1;
  }
  EXPECT_EQ(at, all.end());
  EXPECT_EQ(summary["validation"]["num_bytes"], num_validation_bytes);
  const TokenRows rows(options_.output, "validation", 16);
  EXPECT_DOUBLE_EQ(rows.targets_per_byte(), static_cast<double>(validation.size() - 15) /
                                                static_cast<double>(num_validation_bytes));
}

TEST_F(TokenShards, MadeAgainOnlyWhereTheInputsChanged) {
  tokenize_corpus(options_);
  const fs::path shard = options_.output / "train-00000.safetensors";
  const std::string before = base::read_file(shard);
  base::write_file_atomically(shard, "marked");
  tokenize_corpus(options_);
  EXPECT_EQ(base::read_file(shard), "marked");
  // The manifest need not say so.
  const fs::path text = options_.corpus / "train-00000.jsonl";
  const std::string lines = base::read_file(text);
  base::write_file_atomically(
      text, lines + Json({{"source", "s"}, {"path", "p"}, {"text", "more"}}).dump() + "\n");
  tokenize_corpus(options_);
  EXPECT_EQ(base::read_json_file(options_.output / "tokens.json")["train"]["num_documents"], 121);
  EXPECT_NE(base::read_file(shard), "marked");
  base::write_file_atomically(text, lines);
  tokenize_corpus(options_);
  EXPECT_EQ(base::read_file(shard), before);
  fs::remove(options_.output / "tokens.json");  // as a kill leaves it
  base::write_file_atomically(shard, "marked");
  tokenize_corpus(options_);
  EXPECT_EQ(base::read_file(shard), before);
}

TEST_F(TokenShards, TokensOfAnotherModelAreRefused) {
  tokenize_corpus(options_);
  model::Config config;
  config.vocab_size = 300;
  check_tokens_fit(options_.output, config);
  config.vocab_size = 299;
  EXPECT_THROW(check_tokens_fit(options_.output, config), Error);
  config.vocab_size = 300;
  config.bos_token_id = 2;
  EXPECT_THROW(check_tokens_fit(options_.output, config), Error);
  EXPECT_THROW(TokenRows(options_.output, "train", 100000), Error);
}

TEST_F(TokenShards, TokensBeyondTheVocabularyAreRefused) {
  tokenize_corpus(options_);
  const fs::path shard = options_.output / "validation-00000.safetensors";
  std::vector<uint16_t> ids(40, 7);
  ids[20] = 300;
  write_shard(shard, ids);
  const TokenRows rows(options_.output, "validation", 16);
  EXPECT_EQ(rows.row(0).size(), 17u);
  try {
    rows.row(1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.what(),
              shard.string() +
                  ": token 20 is 300; expected below 300; the file is damaged, delete "
                  "its folder and the text is cut again");
  }
}

TEST(RowsInOrder, EachEpochTakesEveryRowOnce) {
  constexpr int64_t kRows = 50, kBatch = 8;
  std::vector<int64_t> drawn;
  for (int64_t step = 0; step < 25; ++step)
    for (int64_t row : rows_in_order(kRows, step * kBatch, kBatch, 5)) drawn.push_back(row);
  ASSERT_EQ(drawn.size(), 4u * kRows);
  std::set<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 4; ++epoch) {
    const auto begin = drawn.begin() + epoch * kRows;
    EXPECT_EQ(std::set<int64_t>(begin, begin + kRows).size(), 50u);
    orders.insert({begin, begin + kRows});
  }
  EXPECT_EQ(orders.size(), 4u);
  EXPECT_EQ(rows_in_order(kRows, 48, kBatch, 5),
            std::vector(drawn.begin() + 48, drawn.begin() + 56));
  EXPECT_NE(rows_in_order(kRows, 48, kBatch, 6), rows_in_order(kRows, 48, kBatch, 5));
}

class Batches : public testing::Test {
 protected:
  void SetUp() override {
    write_shard(folder_ / "a.safetensors", {0, 5, 6, 1, 0, 7, 8, 9, 1, 0});
    write_shard(folder_ / "b.safetensors", {0, 2, 3, 4, 1});
    const Json split = {{"files", {"a.safetensors", "b.safetensors"}},
                        {"num_documents", 4},
                        {"num_tokens", 15},
                        {"num_bytes", 8}};
    base::write_file_atomically(folder_ / "tokens.json",
                                Json({{"train", split}, {"vocab_size", 1 << 16}}).dump());
  }
  static std::vector<int64_t> values(const torch::Tensor& tensor) {
    return {tensor.data_ptr<int64_t>(), tensor.data_ptr<int64_t>() + tensor.numel()};
  }
  using Tokens = std::vector<int64_t>;
  fs::path folder_ = empty_folder(this_test());
};

TEST_F(Batches, RowsOverlapByOneAndStayInTheirShard) {
  const TokenRows rows(folder_, "train", 4);
  ASSERT_EQ(rows.num_rows(), 3);
  EXPECT_EQ(rows.row(0), (Tokens{0, 5, 6, 1, 0}));
  EXPECT_EQ(rows.row(1), (Tokens{0, 7, 8, 9, 1}));
  EXPECT_EQ(rows.row(2), (Tokens{0, 2, 3, 4, 1}));
}

TEST_F(Batches, DocumentsAreMaskedFromOneAnother) {
  const TokenRows rows(folder_, "train", 7);
  ASSERT_EQ(rows.num_rows(), 1);
  const auto masked = make_batch(rows, {0, 0}, 0, true);
  EXPECT_EQ(values(masked.tokens_N), (Tokens{0, 5, 6, 1, 0, 7, 8, 0, 5, 6, 1, 0, 7, 8}));
  EXPECT_EQ(values(masked.targets_N), (Tokens{5, 6, 1, -1, 7, 8, 9, 5, 6, 1, -1, 7, 8, 9}));
  EXPECT_EQ(masked.segment_lengths, (Tokens{4, 3, 4, 3}));
  EXPECT_EQ(masked.sequence_lengths, (Tokens{7, 7}));
  const auto open = make_batch(rows, {0, 0}, 0, false);
  EXPECT_EQ(values(open.targets_N), (Tokens{5, 6, 1, 0, 7, 8, 9, 5, 6, 1, 0, 7, 8, 9}));
  EXPECT_EQ(open.segment_lengths, (Tokens{7, 7}));
}

// The same tokens and targets; what a cut hides is what came before.
TEST_F(Batches, RowsAreCutIntoShorterSequences) {
  const TokenRows rows(folder_, "train", 7);
  const auto cut = make_batch(rows, {0, 0}, 0, true, 3);
  EXPECT_EQ(values(cut.tokens_N), (Tokens{0, 5, 6, 1, 0, 7, 8, 0, 5, 6, 1, 0, 7, 8}));
  EXPECT_EQ(values(cut.targets_N), (Tokens{5, 6, 1, -1, 7, 8, 9, 5, 6, 1, -1, 7, 8, 9}));
  EXPECT_EQ(cut.segment_lengths, (Tokens{3, 1, 2, 1, 3, 1, 2, 1}));
  EXPECT_EQ(cut.sequence_lengths, (Tokens{3, 3, 1, 3, 3, 1}));
  const auto open = make_batch(rows, {0}, 0, false, 3);
  EXPECT_EQ(open.segment_lengths, (Tokens{3, 3, 1}));
  EXPECT_EQ(make_batch(rows, {0}, 0, false, 7).segment_lengths, (Tokens{7}));
}

}  // namespace
}  // namespace fathom::pretrain
