// From a dense checkpoint of every kind to sparse attention: convert-to-dsa, warm-up, sparse stage.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <sstream>

#include "base/parallel.h"
#include "model/convert_to_dsa.h"
#include "model/test_dense_checkpoint.h"
#include "pretrain/test_data.h"
#include "pretrain/training_run.h"

namespace fathom::pretrain {
namespace {

namespace fs = std::filesystem;

class ConvertedModel : public testing::TestWithParam<std::string> {
 protected:
  ConvertedModel() {
    base::set_num_threads(1);
    write_synthetic_tokens(folder_ / "tokens");
    model::DenseCheckpoint(model::dense_config(GetParam())).write(folder_ / "dense");
    model::convert_to_dsa({folder_ / "dense", folder_ / "converted", 2, 16, 16, 1});
    json_ = tiny_recipe(folder_);
    json_["model"] = model::to_json(model::read_config(folder_ / "converted/config.json"));
    json_["stages"] = {{"warmup", Json::object()}, {"sparse", Json::object()}};
    json_["training"].update(
        {{"sequence_length", 64}, {"warmup_steps", 1}, {"expert_bias_rate", 0.01}});
  }

  // Runs so many steps of a stage; returns the checkpoint's folder.
  fs::path train(Stage stage, int64_t steps, const fs::path& init) {
    json_["training"]["steps"] = steps;
    TrainingRunOptions options;
    options.recipe = parse_recipe(json_, "test", stage);
    options.run = folder_ / std::string(name_of(stage));
    options.init = init;
    run_training(options);
    std::string name = base::read_file(options.run / "latest");
    name.pop_back();
    return options.run / name;
  }
  std::vector<Json> metrics(Stage stage, const char* key) const {
    std::vector<Json> lines;
    std::istringstream text(
        base::read_file(folder_ / std::string(name_of(stage)) / "metrics.jsonl"));
    for (std::string line; std::getline(text, line);)
      if (Json json = Json::parse(line); json.contains(key)) lines.push_back(std::move(json));
    return lines;
  }

  static fs::path folder_of_this_test() {
    std::string name = this_test();
    std::replace(name.begin(), name.end(), '/', '_');
    return empty_folder("converted_" + name);
  }

  fs::path folder_ = folder_of_this_test();
  Json json_;
};

std::set<std::string> changed_tensors(const fs::path& before, const fs::path& after) {
  const auto a = model::Safetensors::open(before / "model.safetensors");
  const auto b = model::Safetensors::open(after / "model.safetensors");
  std::set<std::string> changed;
  for (const auto& [name, view] : a.tensors())
    if (std::memcmp(view.data, b.at(name).data, view.num_bytes()) != 0) changed.insert(name);
  return changed;
}

TEST_P(ConvertedModel, AStepOfTheWarmUpTrainsItsIndexersAlone) {
  const fs::path warm = train(Stage::kWarmup, 1, folder_ / "converted");
  const auto lines = metrics(Stage::kWarmup, "indexer_loss");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_GT(lines[0]["indexer_loss"], 0.0);
  EXPECT_GT(lines[0]["indexer_gradient_norm"], 0.0);
  // The source's tensors are in the checkpoint with the values that they had.
  const model::DenseCheckpoint dense(model::dense_config(GetParam()));
  const auto saved = model::Safetensors::open(warm / "model.safetensors");
  for (const auto& [name, tensor] : dense.tensors()) {
    const torch::Tensor wide = tensor.to(torch::kFloat32).contiguous();
    EXPECT_EQ(std::memcmp(saved.at(name).data, wide.data_ptr(), saved.at(name).num_bytes()), 0)
        << name;
  }
  EXPECT_EQ(saved.tensors().size(), dense.tensors().size() + 2 * 5);
}

TEST_P(ConvertedModel, TheSparseStageTrainsQueriesGatesAndExperts) {
  const fs::path warm = train(Stage::kWarmup, 2, folder_ / "converted");
  const fs::path sparse = train(Stage::kSparse, 12, warm);
  const auto changed = changed_tensors(warm, sparse);
  const Json& config = json_["model"];
  const std::string layer = "model.layers.1.";
  EXPECT_TRUE(
      changed.contains(layer + (config["q_lora_rank"].is_null() ? "self_attn.q_proj.weight"
                                                                : "self_attn.q_b_proj.weight")));
  EXPECT_TRUE(changed.contains(layer + "self_attn.indexer.wq_b.weight"));
  EXPECT_TRUE(changed.contains(layer + "mlp.gate.weight"));
  EXPECT_TRUE(changed.contains(layer + "mlp.experts.0.up_proj.weight"));
  EXPECT_EQ(changed.contains(layer + "mlp.gate.e_score_correction_bias"),
            config["topk_method"] == "noaux_tc");
  const auto lines = metrics(Stage::kSparse, "loss");
  ASSERT_EQ(lines.size(), 12u);
  EXPECT_LT(lines.back()["loss"], lines.front()["loss"]);
}

INSTANTIATE_TEST_SUITE_P(, ConvertedModel, model::dense_kinds(),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace fathom::pretrain
