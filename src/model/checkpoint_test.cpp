#include "model/checkpoint.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>
#include <unistd.h>

#include <functional>

#include "base/file.h"
#include "model/safetensors.h"

namespace fathom::model {
namespace {

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest()
      : folder_(std::filesystem::temp_directory_path() /
                ("fathom_checkpoint_" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~CheckpointTest() override { std::filesystem::remove_all(folder_); }

  static std::filesystem::path golden(const std::string& name) {
    return std::filesystem::path(FATHOM_ROOT) / "tests/data" / name;
  }

  std::string error() {
    try {
      load_checkpoint(folder_);
    } catch (const Error& e) {
      std::string what = e.what();
      for (size_t at; (at = what.find(folder_.string() + "/")) != std::string::npos;)
        what.erase(at, folder_.string().size() + 1);
      return what;
    }
    return "loaded";
  }

  void write_config(const std::function<void(Json&)>& change) {
    Json config = base::read_json_file(golden("tiny-bf16") / "config.json");
    change(config);
    base::write_file_atomically(folder_ / "config.json", config.dump());
  }

  std::filesystem::path folder_;
};

void expect_equal(Model& a, Model& b) {
  const auto left = tensor_slots(a.weights, a.config), right = tensor_slots(b.weights, b.config);
  ASSERT_EQ(left.size(), right.size());
  for (size_t i = 0; i < left.size(); ++i)
    EXPECT_TRUE(left[i].tensor->equal(*right[i].tensor)) << left[i].name;
}

TEST_F(CheckpointTest, SavesWhatItLoadedInOneFileAndInShards) {
  Model model = load_checkpoint(golden("tiny-bf16"));
  save_checkpoint(model, folder_, torch::kBFloat16);
  Model again = load_checkpoint(folder_);
  expect_equal(model, again);
  std::filesystem::remove(folder_ / "model.safetensors");
  save_checkpoint(model, folder_, torch::kBFloat16, 1 << 20);
  EXPECT_TRUE(std::filesystem::exists(folder_ / "model.safetensors.index.json"));
  EXPECT_TRUE(std::filesystem::exists(folder_ / "model-00003-of-00005.safetensors"));
  Model sharded = load_checkpoint(folder_);
  expect_equal(model, sharded);
}

TEST_F(CheckpointTest, Fp8BecomesF32ForTraining) {
  Model trained = load_checkpoint_for_training(golden("tiny-fp8"));
  EXPECT_EQ(trained.weights.layers[0].self_attn.q_a_proj.weight.scalar_type(), torch::kFloat32);
  EXPECT_TRUE(trained.weights.layers[0].self_attn.q_a_proj.weight.requires_grad());
  save_checkpoint(trained, folder_, torch::kFloat32);
  Model again = load_checkpoint(folder_);
  const torch::NoGradGuard no_grad;
  expect_equal(trained, again);
}

TEST_F(CheckpointTest, WeightsStayMapped) {
  const Model model = load_checkpoint(golden("tiny-bf16"));
  EXPECT_EQ(model.weights.lm_head.weight.scalar_type(), torch::kBFloat16);
  // The storage is the file's map: not allocated by LibTorch, so it cannot be resized.
  EXPECT_FALSE(model.weights.lm_head.weight.storage().resizable());
}

TEST_F(CheckpointTest, MissingShardsAndTensorsAreNamed) {
  EXPECT_EQ(error(), "config.json: cannot open: No such file or directory");
  write_config([](Json&) {});
  EXPECT_EQ(error(), "model.safetensors: cannot open: No such file or directory");
  Model model = load_checkpoint(golden("tiny-bf16"));
  save_checkpoint(model, folder_, torch::kBFloat16, 1 << 20);
  std::filesystem::remove(folder_ / "model-00002-of-00005.safetensors");
  EXPECT_EQ(error().rfind("model.safetensors.index.json: shard model-00002-of-00005.safetensors is "
                          "missing (tensor ",
                          0),
            0u)
      << error();
}

TEST_F(CheckpointTest, ShapesAndStrangersAreNamed) {
  std::filesystem::copy(golden("tiny-bf16") / "model.safetensors", folder_ / "model.safetensors");
  write_config([](Json& c) { c["vocab_size"] = 300; });
  EXPECT_EQ(error(),
            "model.safetensors: tensor model.embed_tokens.weight has shape [256, 128]; config.json "
            "asks for [300, 128]");
  write_config([](Json& c) { c["num_hidden_layers"] = 4; });
  EXPECT_EQ(
      error(),
      "model.safetensors: tensor model.layers.3.input_layernorm.weight is missing; config.json "
      "asks for shape [128]");
  write_config([](Json& c) { c["num_hidden_layers"] = 2; });
  EXPECT_EQ(error().rfind("model.safetensors: tensor model.layers.2.", 0), 0u) << error();
  const int32_t zeros[256 * 128] = {};
  const NamedTensor tensor{"model.embed_tokens.weight",
                           {DType::kI32, {256, 128}, reinterpret_cast<const std::byte*>(zeros)}};
  std::filesystem::remove(folder_ / "model.safetensors");
  write_safetensors(folder_ / "model.safetensors", {&tensor, 1});
  write_config([](Json&) {});
  EXPECT_EQ(error(),
            "model.safetensors: tensor model.embed_tokens.weight has dtype I32; expected F32, F16, "
            "BF16 or F8_E4M3");
}

TEST_F(CheckpointTest, QuantizationThatTheWeightsDoNotHaveIsRefused) {
  std::filesystem::copy(golden("tiny-bf16") / "model.safetensors", folder_ / "model.safetensors");
  std::filesystem::copy(golden("tiny-fp8") / "config.json", folder_ / "config.json");
  EXPECT_EQ(error(),
            "model.safetensors: no tensor is F8_E4M3, but config.json has a quantization_config; "
            "expected both or neither");
  std::filesystem::remove(folder_ / "model.safetensors");
  std::filesystem::copy(golden("tiny-fp8") / "model.safetensors", folder_ / "model.safetensors");
  Json config = base::read_json_file(golden("tiny-fp8") / "config.json");
  config.erase("quantization_config");
  base::write_file_atomically(folder_ / "config.json", config.dump());
  EXPECT_EQ(error(),
            "model.safetensors: a tensor is F8_E4M3, but config.json has no quantization_config; "
            "expected both or neither");
}

TEST_F(CheckpointTest, AnIndexNamesFilesOfItsOwnFolder) {
  write_config([](Json&) {});
  for (const char* name : {"", "../other.safetensors"}) {
    const Json index = {{"weight_map", {{"lm_head.weight", name}}}};
    base::write_file_atomically(folder_ / "model.safetensors.index.json", index.dump());
    EXPECT_EQ(error(),
              fmt::format("model.safetensors.index.json: weight_map[\"lm_head.weight\"] is "
                          "\"{}\"; expected a file name",
                          name));
  }
}

// Of two shards that hold a tensor of one name the index chooses, whatever their order.
TEST_F(CheckpointTest, TheIndexSaysWhereATensorIs) {
  Model model = load_checkpoint(golden("tiny-bf16"));
  save_checkpoint(model, folder_, torch::kBFloat16, 1 << 20);
  const auto path = folder_ / "model.safetensors.index.json";
  Json index = base::read_json_file(path);
  const std::vector<uint16_t> zeros(256 * 128);
  const NamedTensor head{
      "lm_head.weight",
      {DType::kBF16, {256, 128}, reinterpret_cast<const std::byte*>(zeros.data())}};
  for (const std::string name : {"a.safetensors", "z.safetensors"}) {
    write_safetensors(folder_ / name, {&head, 1});
    index["weight_map"]["model.norm.weight.extra"] = name;
    base::write_file_atomically(path, index.dump());
    EXPECT_EQ(error(), fmt::format("model.safetensors.index.json: weight_map says that {} holds "
                                   "tensor model.norm.weight.extra, which it does not; get both "
                                   "again",
                                   name));
    index["weight_map"].erase("model.norm.weight.extra");
    index["weight_map"]["lm_head.weight"] = name;
    base::write_file_atomically(path, index.dump());
    EXPECT_FALSE(load_checkpoint(folder_).weights.lm_head.weight.any().item<bool>()) << name;
  }
}

TEST_F(CheckpointTest, ShardsWithoutTheirIndexAreNamed) {
  write_config([](Json&) {});
  std::filesystem::copy(golden("tiny-bf16") / "model.safetensors",
                        folder_ / "model-00001-of-00001.safetensors");
  EXPECT_NE(error().find("has shards but no model.safetensors.index.json"), std::string::npos)
      << error();
}

TEST_F(CheckpointTest, AnothersVocabularyCutsTheLogits) {
  const torch::NoGradGuard no_grad;
  const Model whole = load_checkpoint(golden("tiny-bf16"));
  const auto cut = with_vocabulary(whole, 100);
  EXPECT_EQ(cut->config.vocab_size, 100);
  const auto run = [](const Model& model) {
    KvCache cache(model.config);
    const Segment segment{3, 0, &cache};
    const ForwardOptions options;
    return logits(model, forward(model, torch::tensor({5, 99, 7}), {&segment, 1}, options),
                  options);
  };
  EXPECT_TRUE(run(*cut).equal(run(whole).narrow(1, 0, 100)));
}

TEST_F(CheckpointTest, ItsFilesAreNotWrittenOver) {
  std::filesystem::copy(golden("tiny-bf16") / "model.safetensors", folder_ / "model.safetensors");
  std::filesystem::create_symlink("model.safetensors", folder_ / "link");
  EXPECT_THROW(check_is_no_part_of(folder_ / "model.safetensors", folder_), Error);
  EXPECT_THROW(check_is_no_part_of(folder_ / "link", folder_), Error);
  EXPECT_NO_THROW(check_is_no_part_of(folder_ / "logits.safetensors", folder_));
}

TEST_F(CheckpointTest, AFullDiskLeavesNothingHalfWritten) {
  const Model model = load_checkpoint(golden("tiny-bf16"));
  const auto target = folder_ / "model.safetensors";
  std::filesystem::create_symlink("/dev/full",
                                  target.string() + ".tmp." + std::to_string(::getpid()));
  EXPECT_THROW(save_checkpoint(model, folder_, torch::kBFloat16), Error);
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

}  // namespace
}  // namespace fathom::model
