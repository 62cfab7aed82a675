#include "pretrain/recipe.h"

#include <gtest/gtest.h>

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
      {"/training/stps", 5, "\"training.stps\" is not a known key"},
      {"/optimizer/momentum", 5, "\"optimizer.momentum\" is not a known key"},
      {"/training", 5, "\"training\" must be an object"},
      {"/training/steps", "10", "\"training.steps\" is \"10\"; expected an integer"},
      {"/training/steps", 1.5, "\"training.steps\" is 1.5; expected an integer"},
      {"/training/steps", 0, "\"training.steps\" must be at least 1"},
      {"/training/seed", -1, "\"training.seed\" is -1; expected an integer of at least 0"},
      {"/training/document_masking", 1, "expected true or false"},
      {"/training/sequence_length", 129, "expected 2 to max_position_embeddings = 128"},
      {"/training/micro_batch_rows", 3, "expected a multiple of micro_batch_rows = 3"},
      {"/training/batch_rows", 0, "\"training.batch_rows\" must be at least 1"},
      {"/training/schedule", "linear", "expected \"wsd\" or \"cosine\""},
      {"/training/warmup_steps", -1, "\"training.warmup_steps\" is -1; expected 0 to steps = 10"},
      {"/training/warmup_steps", 11, "\"training.warmup_steps\" is 11; expected 0 to steps = 10"},
      {"/training/decay_fraction", 1.5, "\"training.decay_fraction\" must lie in 0..1"},
      {"/training/final_fraction", -0.5, "\"training.final_fraction\" must lie in 0..1"},
      {"/training/keep_checkpoints", 0, "must be at least 1"},
      {"/optimizer/matrices", "sgd", "expected \"muon\" or \"adamw\""},
      {"/optimizer/learning_rate", 0, "must be above 0"},
      {"/optimizer/beta2", 1, "below 1"},
      {"/tokenizer/vocab_size", 65,
       "\"tokenizer.vocab_size\" is 65 but \"model.vocab_size\" is 64"},
      {"/model/hidden_size", "big", "hidden_size"},
      {"/model/hiden_size", 3, "hiden_size"},
      {"/model/rope_theta", -1, "field \"rope_theta\" is -1; expected above 0"},
      {"/model/initializer_range", -1, "field \"initializer_range\" is -1; expected above 0"},
      {"/model/quantization_config",
       {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}},
       "\"model.quantization_config\": FP8 weights cannot be trained; remove it"},
      {"/retrieval", {{"shares", 0.5}}, "\"retrieval.shares\" is not a known key"},
      {"/retrieval", {{"share", 1}}, "\"retrieval.share\" must lie in 0..1, below 1"},
      {"/retrieval", {{"share", 0.5}}, "num_pairs\" is 64; a vocabulary of 64 has 26 keys"},
      {"/retrieval", {{"num_pairs", 4}}, "num_queries\" is 32; expected at most num_pairs = 4"},
      {"/retrieval", {{"query_token", 64}}, "64 is not below vocab_size = 64"},
      {"/retrieval", {{"validation_rows", 0}}, "must be at least 1"},
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
            "r.json: \"stages.sprase\" is not a known stage; expected extend, warmup or sparse");
  json = staged_recipe();
  json["stages"]["extend"]["trainng"] = Json::object();
  EXPECT_EQ(error_of(json, Stage::kDense),
            "r.json: \"stages.extend.trainng\" is not known; expected objects model, optimizer or "
            "training");
  json = staged_recipe();
  json["stages"]["sparse"]["training"]["stpes"] = 5;
  EXPECT_EQ(error_of(json, Stage::kSparse),
            "r.json: \"training.stpes\" is not a known key; check its spelling");
}

}  // namespace
}  // namespace fathom::pretrain
