// The benchmarks of training on a tiny recipe: what they hand to others and what they conclude.
#include <gtest/gtest.h>

#include "base/check.h"
#include "base/parallel.h"
#include "bench/decoupling.h"
#include "bench/train.h"
#include "bench/train_steps.h"
#include "model/checkpoint.h"
#include "pretrain/test_data.h"
#include "pretrain/trainer.h"

namespace fathom::bench {
namespace {

class TrainingBench : public testing::Test {
 protected:
  void SetUp() override {
    pretrain::write_synthetic_tokens(folder_ / "tokens");
    json_ = pretrain::tiny_recipe(folder_);
    json_["model"]["index_topk"] = 8;
    json_["stages"] = {{"sparse", Json::object()}};
    base::write_file_atomically(recipe(), json_.dump());
    base::set_num_threads(1);
  }
  std::filesystem::path recipe() const { return folder_ / "r.json"; }

  std::filesystem::path folder_ = pretrain::empty_folder(pretrain::this_test());
  Json json_;
};

TEST_F(TrainingBench, StepsAreThoseOfTheRecipeAndBeginWithWhatIsExported) {
  TrainStepsOptions options;
  options.recipe = recipe();
  options.overrides = {"training.seed=11"};
  options.tokens = folder_ / "tokens";
  options.steps = 2;
  options.export_folder = folder_ / "export";
  const Json result = measure_train_steps(options);
  json_["training"]["seed"] = uint64_t{11};
  const auto parsed = pretrain::parse_recipe(json_, "test");
  pretrain::Trainer trainer(parsed);
  const model::Model exported = model::load_checkpoint(folder_ / "export/model");
  EXPECT_TRUE(exported.weights.lm_head.weight.equal(trainer.model().weights.lm_head.weight));
  const pretrain::TokenRows rows(folder_ / "tokens", "train", 32);
  for (int64_t step = 0; step < 2; ++step) {
    const auto expected = trainer.step(rows, step, 10);
    EXPECT_EQ(result["loss"][step], expected.loss);
    EXPECT_EQ(result["mtp_loss"][step], expected.mtp_loss);
  }
  EXPECT_EQ(result["seconds"].size(), 1u);
  EXPECT_GT(result["tokens_per_cpu_s"], 0);
  EXPECT_EQ(result["tokens_per_step"], 8 * 32);
  const auto batch = model::Safetensors::open(folder_ / "export/batch.safetensors");
  const auto& tokens = batch.at("tokens");
  EXPECT_EQ(tokens.shape, (std::vector<int64_t>{2, 8, 33}));
  const auto second = rows.row(pretrain::rows_in_order(rows.num_rows(), 8, 8, 11)[0]);
  for (int64_t i = 0; i < 33; ++i)
    EXPECT_EQ(reinterpret_cast<const int32_t*>(tokens.data)[8 * 33 + i], second[i]);
}

TEST_F(TrainingBench, WithoutTokensStepsReadRandomDocuments) {
  TrainStepsOptions options;
  options.recipe = recipe();
  options.steps = 1;
  const Json first = measure_train_steps(options), second = measure_train_steps(options);
  EXPECT_NEAR(first["loss"][0], std::log(64), 0.5);
  EXPECT_EQ(first["loss"], second["loss"]);
}

TEST_F(TrainingBench, OnlyTheCutsKeepTheMainModelsGradients) {
  model::save_checkpoint(model::initialise(pretrain::parse_recipe(json_, "test").model, 1),
                         folder_ / "model", torch::kFloat32);
  DecouplingOptions options;
  options.recipe = recipe();
  options.model = folder_ / "model";
  const Json result = measure_decoupling(options);
  EXPECT_TRUE(result["cuts"]["is_bit_identical"]);
  EXPECT_EQ(result["cuts"]["relative_change"], 0);
  for (const char* arm : {"no_input_cut", "no_teacher_cut"}) {
    EXPECT_FALSE(result[arm]["is_bit_identical"]);
    EXPECT_GT(result[arm]["relative_change"], 1e-6);
  }
}

TEST_F(TrainingBench, LinesForAnExperimentGrowByALength) {
  model::save_checkpoint(model::initialise(pretrain::parse_recipe(json_, "test").model, 1),
                         folder_ / "model", torch::kFloat32);
  TrainOptions options;
  options.model = folder_ / "model";
  options.stages = {"sparse"};
  options.repeats = 1;
  options.runs = folder_ / "runs";
  for (int64_t length : {16, 32}) {
    options.lengths = {length};
    measure_training(options);
  }
  std::istringstream text(base::read_file(folder_ / "runs/sparse/metrics.jsonl"));
  std::vector<Json> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(Json::parse(line));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1]["tokens"], 32);
  EXPECT_EQ(lines[1]["step_cpu_seconds"], lines[1]["step_cpu_seconds_32"]);
  EXPECT_GT(lines[1]["step_seconds"], 0);
  EXPECT_TRUE(lines[0].contains("bytes_a_token_16"));
}

}  // namespace
}  // namespace fathom::bench
