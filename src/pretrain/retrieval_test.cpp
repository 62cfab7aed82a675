#include "pretrain/retrieval.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "base/check.h"
#include "base/parallel.h"
#include "pretrain/test_data.h"
#include "pretrain/trainer.h"
#include "pretrain/training_run.h"

namespace fathom::pretrain {
namespace {

class Retrieval : public testing::Test {
 protected:
  void SetUp() override {
    write_synthetic_tokens(folder_ / "tokens");
    json_ = tiny_recipe(folder_);
    json_["model"]["index_topk"] = 16;
    json_["training"]["sequence_length"] = 64;
    json_["retrieval"] = {{"share", 0.5},     {"num_pairs", 8},    {"num_queries", 4},
                          {"pair_token", 62}, {"query_token", 63}, {"validation_rows", 6}};
    base::set_num_threads(1);
  }
  Recipe recipe() const { return parse_recipe(json_, "test"); }
  RetrievalDocument document(uint64_t seed, uint64_t number) const {
    std::vector<int64_t> text(64, 5);
    text[10] = 0;  // another document's beginning
    return make_retrieval_document(recipe().retrieval, recipe().model, text, seed, number);
  }

  std::filesystem::path folder_ = empty_folder(this_test());
  Json json_;
};

TEST_F(Retrieval, EveryQueryIsAnsweredByExactlyOnePairAtItsDistance) {
  const auto [tokens, queries] = document(3, 4);
  ASSERT_EQ(tokens.size(), 64u);
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 0), 1);
  EXPECT_EQ(tokens[0], 0);
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 62), 8);
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 63), 4);
  ASSERT_EQ(queries.size(), 4u);
  std::set<int32_t> keys;
  for (const RetrievalQuery& query : queries) {
    const int32_t key = tokens[query.position];
    keys.insert(key);
    EXPECT_EQ(tokens[query.position - 1], 63);
    EXPECT_EQ(tokens[query.position + 1], query.value);
    const int64_t value = query.position - query.distance;
    EXPECT_EQ(tokens[value - 2], 62);
    EXPECT_EQ(tokens[value - 1], key);
    EXPECT_EQ(tokens[value], query.value);
    EXPECT_GE(key, 3);
    EXPECT_LT(key, 29);          // 53 ordinary tokens: 26 keys
    EXPECT_GE(query.value, 29);  // and 26 values
    EXPECT_LT(query.value, 55);
    int num_pairs = 0;
    for (size_t i = 0; i + 1 < tokens.size(); ++i)
      num_pairs += tokens[i] == 62 && tokens[i + 1] == key;
    EXPECT_EQ(num_pairs, 1);
  }
  EXPECT_EQ(keys.size(), 4u);
}

TEST_F(Retrieval, IsAFunctionOfSeedAndNumber) {
  EXPECT_EQ(document(3, 4).tokens, document(3, 4).tokens);
  EXPECT_NE(document(3, 4).tokens, document(3, 5).tokens);
  EXPECT_NE(document(3, 4).tokens, document(4, 4).tokens);
}

TEST_F(Retrieval, RefusesMorePairsThanARowHolds) {
  json_["retrieval"]["num_pairs"] = 18;
  try {
    document(1, 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(
        error.what(),
        "\"retrieval.num_pairs\" is 18; a row of 64 tokens with 4 queries holds at most 17");
  }
}

TEST_F(Retrieval, TheMixtureHasItsShareAndTextAloneToValidate) {
  const auto text = folder_ / "tokens", mixture = mix_with_retrieval(recipe(), text);
  const TokenRows before(text, "train", 64), rows(mixture, "train", 64);
  EXPECT_EQ(rows.num_rows(), 2 * before.num_rows());
  int num_retrieval = 0;
  for (int64_t i = 0; i < rows.num_rows(); ++i) {
    const auto row = rows.row(i);
    const bool is_retrieval = std::count(row.begin(), row.end(), 62) >= 8 && row[0] == 0;
    if (!is_retrieval) continue;
    ++num_retrieval;
    EXPECT_EQ(row.back(), 0);  // the next document's BOS: rows and documents coincide
  }
  EXPECT_EQ(num_retrieval, before.num_rows());
  const TokenRows validation(mixture, "validation", 64), expected(text, "validation", 64);
  ASSERT_EQ(validation.num_rows(), expected.num_rows());
  EXPECT_EQ(validation.row(0), expected.row(0));
  // Held-out documents are none of those that are trained on.
  std::set<std::vector<int64_t>> trained;
  for (int64_t i = 0; i < rows.num_rows(); ++i) {
    auto row = rows.row(i);
    row.pop_back();
    trained.insert(row);
  }
  for (const auto& held_out : held_out_documents(recipe(), text))
    EXPECT_FALSE(trained.contains({held_out.tokens.begin(), held_out.tokens.end()}));
  // Another share is another mixture in the same folder.
  json_["retrieval"]["share"] = 0.75;
  EXPECT_EQ(TokenRows(mix_with_retrieval(recipe(), text), "train", 64).num_rows(),
            4 * before.num_rows());
}

TEST_F(Retrieval, AccuracyCountsTheQueriesWhoseBestTokenIsTheValue) {
  const Recipe r = recipe();
  model::Model model = model::initialise(r.model, 1);
  const auto documents = held_out_documents(r, folder_ / "tokens");
  std::vector<RetrievalDocument> answered = documents;
  const model::ForwardOptions dense{.form = model::AttentionForm::kMha, .sparse = false};
  const auto found = measure_retrieval(model, documents, dense);
  EXPECT_EQ(found.num_beyond + found.num_within, 6 * 4);
  EXPECT_GT(found.num_beyond, 8);
  EXPECT_GT(found.num_within, 0);
  EXPECT_LT(found.beyond + found.within, 0.5);  // it has learned nothing
  {
    const torch::NoGradGuard no_grad;
    model.weights.norm.zero_();
  }
  // All logits are 0: the best is the first token, which is no value.
  const auto none = measure_retrieval(model, answered, dense);
  EXPECT_EQ(none.beyond + none.within, 0);
  for (auto& document : answered)
    for (auto& query : document.queries) query.value = 0;
  const auto all = measure_retrieval(model, answered, dense);
  EXPECT_EQ(all.beyond, 1);
  EXPECT_EQ(all.within, 1);
}

TEST_F(Retrieval, ARunReportsItBesideTheLossOfText) {
  json_["training"]["steps"] = 2;
  json_["training"]["validate_every"] = 2;
  json_["experiment"] = {{"attention_entropy", true}};
  TrainingRunOptions options;
  options.recipe = recipe();
  options.run = folder_ / "run";
  run_training(options);
  const std::string metrics = base::read_file(folder_ / "run/metrics.jsonl");
  EXPECT_NE(metrics.find("\"validation_retrieval_beyond\""), std::string::npos);
  EXPECT_NE(metrics.find("\"validation_loss\""), std::string::npos);
  EXPECT_NE(metrics.find("\"validation_attention_entropy\":["), std::string::npos);
}

TEST_F(Retrieval, TheExperimentsOptionsReachTheForwardPass) {
  const auto forward_of = [&](const std::string& key, const Json& value) {
    Json json = json_;
    json["stages"] = {{"sparse", Json::object()}};
    json["experiment"] = {{key, value}};
    return loss_options(parse_recipe(json, "test", Stage::kSparse)).forward;
  };
  const auto normal = forward_of("key_rule", "indexer");
  EXPECT_EQ(normal.key_rule, model::KeyRule::kIndexer);
  EXPECT_TRUE(normal.indexer_loss && normal.detach_teacher && normal.detach_indexer_input);
  EXPECT_EQ(forward_of("key_rule", "window").key_rule, model::KeyRule::kWindow);
  EXPECT_EQ(forward_of("key_rule", "random").key_rule, model::KeyRule::kRandom);
  EXPECT_EQ(forward_of("key_rule", "random").key_seed, 7u);
  EXPECT_EQ(forward_of("key_rule", "oracle").key_rule, model::KeyRule::kOracle);
  EXPECT_FALSE(forward_of("key_rule", "oracle").indexer_loss);
  EXPECT_FALSE(forward_of("detach_teacher", false).detach_teacher);
  EXPECT_FALSE(forward_of("detach_indexer_input", false).detach_indexer_input);
}

}  // namespace
}  // namespace fathom::pretrain
