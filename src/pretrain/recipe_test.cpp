#include "pretrain/recipe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "base/check.h"
#include "pretrain/test_data.h"

namespace fathom::pretrain {
namespace {

std::string error_of(const Json& recipe) {
  try {
    parse_recipe(recipe, "r.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Recipe, TheBundledOneIsRead) {
  const Recipe recipe = read_recipe(FATHOM_ROOT "/recipes/nano.json", {});
  EXPECT_EQ(recipe.model.vocab_size, recipe.tokenizer.vocab_size);
  EXPECT_EQ(recipe.data, "data/nano");
}

TEST(Recipe, FieldsAndOverrides) {
  const auto path = empty_folder("recipe") / "r.json";
  base::write_file_atomically(path, tiny_recipe("data/tiny").dump());
  const Recipe recipe =
      read_recipe(path, {"training.steps=77", "optimizer.matrices=\"adamw\"", "training.seed=9"});
  EXPECT_EQ(recipe.data, "data/tiny");
  EXPECT_EQ(recipe.model.hidden_size, 32);
  EXPECT_EQ(recipe.training.steps, 77);
  EXPECT_EQ(recipe.training.seed, 9u);
  EXPECT_EQ(recipe.training.micro_batch_rows, 4);
  EXPECT_EQ(recipe.optimizer.matrices, "adamw");
  EXPECT_EQ(recipe.source["training"]["steps"], 77);
  EXPECT_THROW(read_recipe(path, {"steps=3"}), Error);
  EXPECT_THROW(read_recipe(path, {"training.steps=many"}), Error);
  EXPECT_THROW(read_recipe(path, {"training.step=3"}), Error);
}

TEST(Recipe, AKeyGivenTwiceIsRefused) {
  const auto path = empty_folder("recipe_twice") / "r.json";
  base::write_file_atomically(path, R"({"data": "a", "data": "b", "model": {}})");
  try {
    read_recipe(path, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), path.string() + ": key \"data\" stands twice in one object");
  }
}

struct BadValue {
  const char* pointer;
  Json value;
  const char* message;
};

TEST(Recipe, EveryFaultIsNamed) {
  const BadValue table[] = {
      {"/corpora", 1, "\"corpora\" is not a known key"},
      {"/data", 5, "\"data\" is missing; expected the folder"},
      {"/corpus", 5, "'corpus' must be a list of sources"},
      {"/corpus", {5}, "corpus[0]: expected an object, found 5"},
      {"/training/stps", 5, "\"training.stps\" is not a known key"},
      {"/optimizer/momentum", 5, "\"optimizer.momentum\" is not a known key"},
      {"/training", 5, "\"training\" must be an object"},
      {"/training/steps", "10", "\"training.steps\" is \"10\"; expected an integer"},
      {"/training/steps", 1.5, "\"training.steps\" is 1.5; expected an integer"},
      {"/training/steps", 0, "\"training.steps\" is 0; expected at least 1"},
      {"/training/seed", -1, "\"training.seed\" is -1; expected an integer of at least 0"},
      {"/training/document_masking", 1, "expected true or false"},
      {"/training/sequence_length", 129, "expected 2 to max_position_embeddings = 128"},
      {"/training/micro_batch_rows", 3, "expected a multiple of micro_batch_rows = 3"},
      {"/training/batch_rows", 0, "\"training.batch_rows\" is 0; expected at least 1"},
      {"/training/schedule", "linear", "expected \"wsd\" or \"cosine\""},
      {"/training/first_batch_rows", 3, "expected 0 or a multiple of micro_batch_rows = 4"},
      {"/training/first_batch_rows", 12, "up to batch_rows = 8"},
      {"/training/batch_growth_steps", -1, "\"training.batch_growth_steps\" is -1"},
      {"/training/first_sequence_length", 33, "expected 0 or 2 to sequence_length = 32"},
      {"/training/length_growth_steps", -1, "\"training.length_growth_steps\" is -1"},
      {"/training/late_mtp_fraction", 1.5, "\"training.late_mtp_fraction\" is 1.5; expected 0 to"},
      {"/training/late_mtp_weight", -1, "\"training.late_mtp_weight\" is -1; expected at least 0"},
      {"/training/fixed_bias_fraction", -0.5, "\"training.fixed_bias_fraction\" is -0.5"},
      {"/training/fim_rate", 2, "\"training.fim_rate\" is 2; expected 0 to 1"},
      {"/training/balance", "row", "is \"row\"; expected \"batch\" or \"sequence\""},
      {"/training/warmup_steps", -1, "\"training.warmup_steps\" is -1; expected 0 to steps = 10"},
      {"/training/warmup_steps", 11, "\"training.warmup_steps\" is 11; expected 0 to steps = 10"},
      {"/training/decay_fraction", 1.5, "\"training.decay_fraction\" is 1.5; expected 0 to 1"},
      {"/training/final_fraction", -0.5, "\"training.final_fraction\" is -0.5; expected 0 to 1"},
      {"/training/keep_checkpoints", 0, "\"training.keep_checkpoints\" is 0; expected at least 1"},
      {"/training/skip_steps", {3, 0}, "names step 0; expected 1 to steps = 10"},
      {"/training/skip_steps", {11}, "names step 11; expected 1 to steps = 10"},
      {"/optimizer/matrices", "sgd", "expected \"muon\" or \"adamw\""},
      {"/optimizer/learning_rate", 0, "\"optimizer.learning_rate\" is 0; expected above 0"},
      {"/optimizer/beta2", 1, "below 1"},
      {"/optimizer/weight_decay", -1, "\"optimizer.weight_decay\" is -1; expected at least 0"},
      {"/optimizer/norm_weight_decay", -1, "\"optimizer.norm_weight_decay\" is -1; expected at"},
      {"/tokenizer/vocab_size", 65,
       "\"tokenizer.vocab_size\" is 65 but \"model.vocab_size\" is 64"},
      {"/model/hidden_size", "big", "hidden_size"},
      {"/model/hiden_size", 3, "hiden_size"},
      {"/model/rope_theta", -1, "field \"rope_theta\" is -1; expected above 0"},
      {"/model/initializer_range", -1, "field \"initializer_range\" is -1; expected above 0"},
      {"/model/quantization_config",
       {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}},
       "\"model.quantization_config\" stands for FP8 weights, which cannot be trained; remove it"},
      {"/retrieval", {{"shares", 0.5}}, "\"retrieval.shares\" is not a known key"},
      {"/retrieval", {{"share", 1}}, "\"retrieval.share\" is 1; expected 0 to 1, below 1"},
      {"/retrieval", {{"share", 0.5}}, "\"retrieval.num_pairs\" is 64; a vocabulary of 64 has 26"},
      {"/retrieval",
       {{"num_pairs", 4}},
       "\"retrieval.num_queries\" is 32; expected 1 to num_pairs"},
      {"/retrieval", {{"query_token", 64}}, "\"retrieval.query_token\" is 64; expected 0 to"},
      {"/retrieval", {{"validation_rows", 0}}, "\"retrieval.validation_rows\" is 0; expected at"},
      {"/experiment", {{"key_rule", "best"}}, "\"experiment.key_rule\" is \"best\"; expected"},
      {"/experiment", {{"detach_teacher", 1}}, "is 1; expected true or false"},
  };
  for (const auto& [pointer, value, message] : table) {
    Json recipe = tiny_recipe("data/tiny");
    recipe[Json::json_pointer(pointer)] = value;
    const std::string error = error_of(recipe);
    EXPECT_NE(error.find(message), std::string::npos) << pointer << ": " << error;
    EXPECT_TRUE(error.starts_with("r.json: ")) << error;
  }
  EXPECT_EQ(error_of(tiny_recipe("data/tiny")), "");
}

// A recipe on disk, a key a line, so that a fault can be told from its line.
class RecipeLines : public testing::Test {
 protected:
  std::string error_of(const std::string& text, const std::vector<std::string>& overrides = {},
                       Stage stage = Stage::kDense, int64_t phase = 0) const {
    base::write_file_atomically(path_, text);
    try {
      read_recipe(path_, overrides, stage, phase);
    } catch (const Error& error) {
      const std::string what = error.what();
      return what.starts_with(path_.string()) ? "r" + what.substr(path_.string().size()) : what;
    }
    return "";
  }
  static std::string replaced(std::string text, const std::string& from, const std::string& to) {
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  }
  static int64_t line_of(const std::string& text, const std::string& part) {
    const size_t at = text.find(part);
    EXPECT_NE(at, std::string::npos) << part;
    return 1 + std::count(text.begin(), text.begin() + static_cast<int64_t>(at), '\n');
  }

  std::filesystem::path path_ = empty_folder("recipe_lines_" + this_test()) / "r.json";
  std::string good_ = tiny_recipe("data/tiny").dump(2);
};

TEST_F(RecipeLines, EveryFaultNamesItsLine) {
  EXPECT_EQ(error_of(good_), "");
  struct Fault {
    std::string from, to, message;
  };
  for (const auto& [from, to, message] : {
           Fault{"\"steps\": 10", "\"stepz\": 10",
                 "\"training.stepz\" is not a known key; check its spelling"},
           {"\"steps\": 10", "\"steps\": \"10\"",
            "\"training.steps\" is \"10\"; expected an integer"},
           {"\"learning_rate\": 0.01", "\"learning_rate\": 0",
            "\"optimizer.learning_rate\" is 0; expected above 0"},
           {"\"sequence_length\": 32", "\"sequence_length\": 129",
            "\"training.sequence_length\" is 129; expected 2 to max_position_embeddings = 128"},
           {"\"hidden_size\": 32", "\"hiden_size\": 32",
            "\"model\": field \"hidden_size\" is missing; expected an integer"},
           {"\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 5",
            "\"model\": num_experts_per_tok is 5 but n_routed_experts is 4; expected "
            "num_experts_per_tok <= n_routed_experts"},
           {"\"data\": ", "\"dat\": ",
            "\"dat\" is not a known key; expected corpus, data, tokenizer, model, optimizer, "
            "training, stages, retrieval or experiment"},
       }) {
    const std::string text = replaced(good_, from, to);
    // What is missing is missing from the object that begins there.
    const bool is_missing = message.find("is missing") != std::string::npos;
    const int64_t line = line_of(text, is_missing ? "\"model\": {" : to);
    EXPECT_EQ(error_of(text), fmt::format("r:{}: {}", line, message));
  }
}

TEST_F(RecipeLines, AStagesValueStandsInItsSectionAndAnOverrideOnTheCommandLine) {
  Json json = tiny_recipe("data/tiny");
  json["stages"] = {{"extend", {{"model", {{"index_topk", 0}}}}},
                    {"sparse", {{"training", {{"steps", 0}}}}}};
  const std::string text = json.dump(2);
  EXPECT_EQ(error_of(text, {"model.index_topk=4"}, Stage::kSparse),
            fmt::format("r:{}: \"training.steps\" is 0; expected at least 1",
                        line_of(text, "\"steps\": 0")));
  EXPECT_EQ(error_of(text, {"training.steps=5"}, Stage::kSparse),
            fmt::format("r:{}: \"model\": field \"index_topk\" is 0; expected 1 to 16777216",
                        line_of(text, "\"index_topk\": 0")));
  EXPECT_EQ(error_of(good_, {"training.stepz=3"}),
            "--set training.stepz=3: \"training.stepz\" is not a known key; check its spelling");
  EXPECT_EQ(error_of(good_, {"training.batch_rows=7"}),
            "--set training.batch_rows=7: \"training.batch_rows\" is 7; expected a multiple of "
            "micro_batch_rows = 4");
}

TEST_F(RecipeLines, APhasesValueStandsInItsOwnObject) {
  Json json = tiny_recipe("data/tiny");
  json["stages"] = {{"extend",
                     {{{"model", {{"index_topk", 0}}}, {"training", {{"steps", -1}}}},
                      {{"training", {{"steps", -2}}}}}}};
  const std::string text = json.dump(2);
  for (const int64_t phase : {1, 2}) {
    const std::string steps = fmt::format("\"steps\": {}", -phase);
    EXPECT_EQ(error_of(text, {"model.index_topk=4"}, Stage::kExtend, phase),
              fmt::format("r:{}: \"training.steps\" is {}; expected at least 1",
                          line_of(text, steps), -phase));
    EXPECT_EQ(error_of(text, {"training.steps=5"}, Stage::kExtend, phase),
              fmt::format("r:{}: \"model\": field \"index_topk\" is 0; expected 1 to 16777216",
                          line_of(text, "\"index_topk\": 0")));
  }
}

TEST_F(RecipeLines, TheCorpusIsReadBeforeItIsGathered) {
  Json json = tiny_recipe("data/tiny");
  json["corpus"] = {{{"package", "perl-doc"}, {"kind", "pod"}, {"licence", "GPL"}},
                    {{"package", "perl"}, {"kind", "pod"}, {"licence", "GPL"}, {"undr", "usr"}}};
  const std::string error = error_of(json.dump(2));
  EXPECT_TRUE(error.starts_with(
      fmt::format("r:{}: corpus[1]", line_of(json.dump(2), "\"package\": \"perl\"") - 1)))
      << error;
  EXPECT_NE(error.find("undr"), std::string::npos) << error;
  json["corpus"][1].erase("undr");
  EXPECT_EQ(error_of(json.dump(2)), "");
}

// Whichever stage is trained.
TEST_F(RecipeLines, EveryStagesKeysAndTypesAreRead) {
  Json json = tiny_recipe("data/tiny");
  json["stages"] = {{"warmup", {{"model", {{"index_topk", 16}}}}},
                    {"sparse", {{"training", {{"warmup_steps", 1}}}}}};
  const std::string good = json.dump(2);
  for (const Stage stage : {Stage::kDense, Stage::kWarmup, Stage::kSparse})
    EXPECT_EQ(error_of(good, {}, stage), "");
  for (const auto& [from, to, message] : {
           std::tuple("\"warmup_steps\": 1", "\"warmup_stpes\": 1",
                      "\"training.warmup_stpes\" is not a known key; check its spelling"),
           std::tuple("\"warmup_steps\": 1", "\"warmup_steps\": 1.5",
                      "\"training.warmup_steps\" is 1.5; expected an integer"),
           std::tuple("\"index_topk\": 16", "\"index_topk\": \"16\"",
                      "\"model\": field \"index_topk\" is \"16\"; expected an integer"),
       }) {
    const std::string text = replaced(good, from, to);
    for (const Stage stage : {Stage::kDense, Stage::kWarmup, Stage::kSparse})
      EXPECT_EQ(error_of(text, {}, stage), fmt::format("r:{}: {}", line_of(text, to), message));
  }
}

TEST(RecipeStages, SkipStepsOfTheirOwn) {
  Json json = tiny_recipe("data");
  json["training"]["skip_steps"] = {9};
  json["stages"] = {{"extend", {{"training", {{"steps", 5}}}}},
                    {"sparse", {{"training", {{"skip_steps", {2}}}}}}};
  EXPECT_EQ(parse_recipe(json, "r.json").training.skip_steps, std::vector<int64_t>{9});
  EXPECT_TRUE(parse_recipe(json, "r.json", Stage::kExtend).training.skip_steps.empty());
  EXPECT_EQ(parse_recipe(json, "r.json", Stage::kSparse).training.skip_steps,
            std::vector<int64_t>{2});
}

TEST_F(RecipeLines, WhatHoldsNoKeysIsRefusedAsASection) {
  EXPECT_EQ(error_of(good_, {"data.x=1"}),
            "--set data.x=1: \"data\" is no section of keys; change it in the recipe");
  EXPECT_EQ(error_of("[]", {"training.steps=5"}), "r: a recipe is a JSON object");
  Json json = tiny_recipe("data/tiny");
  json["stages"] = {{"sparse", {{"training", {{"steps", 5}}}}}};
  json["training"] = 5;
  const std::string text = json.dump(2);
  EXPECT_EQ(error_of(text, {}, Stage::kSparse),
            fmt::format("r:{}: \"training\" must be an object", line_of(text, "\"training\": 5")));
}

Json staged_recipe() {
  Json json = tiny_recipe("data");
  json["stages"] = {
      {"extend",
       {{"model", {{"max_position_embeddings", 256}}},
        {"training", {{"sequence_length", 200}, {"steps", 3}}}}},
      {"sparse", {{"model", {{"index_topk", 16}}}, {"optimizer", {{"learning_rate", 0.5}}}}}};
  return json;
}

TEST(RecipeStages, ReplaceOwnValuesAndInheritTheModelOfTheStagesBefore) {
  const Json json = staged_recipe();
  const Recipe dense = parse_recipe(json, "r.json");
  EXPECT_EQ(dense.model.max_position_embeddings, 128);
  EXPECT_EQ(dense.source, tiny_recipe("data"));
  const Recipe extend = parse_recipe(json, "r.json", Stage::kExtend);
  EXPECT_EQ(extend.model.max_position_embeddings, 256);
  EXPECT_EQ(extend.model.index_topk, 32);
  EXPECT_EQ(extend.training.sequence_length, 200);
  EXPECT_EQ(extend.optimizer.learning_rate, 0.01);
  const Recipe sparse = parse_recipe(json, "r.json", Stage::kSparse);
  EXPECT_EQ(sparse.model.max_position_embeddings, 256);
  EXPECT_EQ(sparse.model.index_topk, 16);
  EXPECT_EQ(sparse.training.sequence_length, 32);
  EXPECT_EQ(sparse.optimizer.learning_rate, 0.5);
}

// An extension in two steps, as the report of V3 makes it; what comes after has the last one's
// model.
TEST(RecipeStages, PhasesFollowOneAnother) {
  Json json = staged_recipe();
  json["stages"]["extend"] = {
      {{"model", {{"max_position_embeddings", 256}, {"index_topk", 24}}},
       {"training", {{"sequence_length", 200}}}},
      {{"model", {{"max_position_embeddings", 512}}}, {"optimizer", {{"learning_rate", 0.25}}}}};
  const Recipe first = parse_recipe(json, "r.json", Stage::kExtend, 1);
  EXPECT_EQ(first.model.max_position_embeddings, 256);
  EXPECT_EQ(first.training.sequence_length, 200);
  const Recipe second = parse_recipe(json, "r.json", Stage::kExtend, 2);
  EXPECT_EQ(second.model.max_position_embeddings, 512);
  EXPECT_EQ(second.model.index_topk, 24);
  EXPECT_EQ(second.training.sequence_length, 32);
  EXPECT_EQ(second.optimizer.learning_rate, 0.25);
  EXPECT_NE(first.source, second.source);  // one does not go on in the other's folder
  const Recipe sparse = parse_recipe(json, "r.json", Stage::kSparse);
  EXPECT_EQ(sparse.model.max_position_embeddings, 512);
  EXPECT_EQ(sparse.model.index_topk, 16);
  const auto error_of = [](const Json& recipe, Stage stage, int64_t phase) -> std::string {
    try {
      parse_recipe(recipe, "r.json", stage, phase);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(error_of(json, Stage::kExtend, 0),
            "r.json: \"stages.extend\" has 2 phases; say which with --phase");
  EXPECT_EQ(error_of(json, Stage::kExtend, 3),
            "--phase 3: \"stages.extend\" of r.json has 2 phases");
  EXPECT_EQ(error_of(json, Stage::kSparse, 2),
            "--phase 2: \"stages.sparse\" of r.json has one phase");
  json["stages"]["extend"][1]["training"]["stpes"] = 5;
  EXPECT_EQ(error_of(json, Stage::kDense, 0),
            "r.json: \"training.stpes\" is not a known key; check its spelling");
  json["stages"]["extend"][1] = {{"trainng", Json::object()}};
  EXPECT_EQ(
      error_of(json, Stage::kDense, 0),
      "r.json: \"stages.extend[1].trainng\" is not known; expected objects model, optimizer or "
      "training");
  json["stages"]["extend"] = Json::array();
  EXPECT_EQ(error_of(json, Stage::kDense, 0),
            "r.json: \"stages.extend\" lists 0 phases; expected 1 to 16");
}

TEST(RecipeStages, RefuseWhatTheyDoNotKnow) {
  const auto error_of = [](const Json& json, Stage stage) -> std::string {
    try {
      parse_recipe(json, "r.json", stage);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(error_of(staged_recipe(), Stage::kWarmup),
            "r.json: \"stages.warmup\" is missing; expected what this stage does otherwise");
  Json json = staged_recipe();
  json["stages"]["sprase"] = Json::object();
  EXPECT_EQ(error_of(json, Stage::kDense),
            "r.json: \"stages.sprase\" is not a known stage; expected extend, warmup, sparse or "
            "mtp");
  json = staged_recipe();
  json["stages"]["extend"]["trainng"] = Json::object();
  EXPECT_EQ(error_of(json, Stage::kDense),
            "r.json: \"stages.extend.trainng\" is not known; expected objects model, optimizer or "
            "training");
  json = staged_recipe();
  json["stages"]["sparse"]["training"]["stpes"] = 5;
  EXPECT_EQ(error_of(json, Stage::kSparse),
            "r.json: \"training.stpes\" is not a known key; check its spelling");
  json = staged_recipe();
  json["stages"]["mtp"] = {{"model", {{"num_nextn_predict_layers", 0}}}};
  EXPECT_EQ(error_of(json, Stage::kMtp),
            "r.json: \"model.num_nextn_predict_layers\" is 0; the mtp stage needs an MTP layer");
  json = staged_recipe();
  json["stages"]["warmup"] = Json::object();
  json["experiment"] = {{"key_rule", "window"}};
  EXPECT_EQ(error_of(json, Stage::kSparse), "");
  EXPECT_EQ(error_of(json, Stage::kWarmup),
            "r.json: \"experiment.key_rule\" is \"window\"; the warmup stage trains the indexers "
            "alone and needs \"indexer\"");
  json["experiment"] = Json::object();
  json["stages"]["warmup"]["training"]["indexer_weight"] = 0;
  EXPECT_EQ(error_of(json, Stage::kWarmup),
            "r.json: \"training.indexer_weight\" is 0; the warmup stage has no other loss");
}

}  // namespace
}  // namespace fathom::pretrain
