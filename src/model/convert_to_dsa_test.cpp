#include "model/convert_to_dsa.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>
#include <unistd.h>

#include <cstring>

#include "base/check.h"
#include "base/file.h"
#include "model/checkpoint.h"
#include "model/safetensors.h"
#include "model/test_config.h"

namespace fathom::model {
namespace {

namespace fs = std::filesystem;

class ConvertToDsa : public testing::Test {
 protected:
  // A dense checkpoint as its makers publish it: our own without the indexers.
  void SetUp() override {
    fs::remove_all(folder_);
    save_checkpoint(model_, folder_ / "whole", torch::kBFloat16);
    fs::create_directories(folder_ / "dense");
    const auto whole = Safetensors::open(folder_ / "whole/model.safetensors");
    std::vector<NamedTensor> tensors;
    for (const auto& [name, view] : whole.tensors())
      if (name.find(".indexer.") == std::string::npos) tensors.push_back({name, view});
    write_safetensors(folder_ / "dense/model.safetensors", tensors);
    config_ = to_json(model_.config);
    config_["model_type"] = "deepseek_v3";
    config_["architectures"] = {"DeepseekV3ForCausalLM"};
    for (const char* key : {"index_n_heads", "index_head_dim", "index_topk"}) config_.erase(key);
    write_config();
    base::write_file_atomically(folder_ / "dense/tokenizer.json", "{}");
  }
  void write_config() const {
    base::write_file_atomically(folder_ / "dense/config.json", config_.dump());
  }
  DsaConversion options() const { return {folder_ / "dense", folder_ / "sparse", 3, 16, 32, 1}; }
  std::string error() const {
    try {
      convert_to_dsa(options());
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  fs::path folder_ =
      fs::path(testing::TempDir()) / ("fathom_convert_to_dsa_" + std::to_string(::getpid()));
  Model model_ = initialise(tiny_config(), 3);
  Json config_;
};

TEST_F(ConvertToDsa, AddsIndexersAndChangesNothingElse) {
  convert_to_dsa(options());
  const Model converted = load_checkpoint(folder_ / "sparse");
  EXPECT_EQ(converted.config.index_n_heads, 3);
  EXPECT_EQ(converted.config.index_topk, 32);
  Weights weights = converted.weights;
  int num_indexer = 0;
  const auto whole = Safetensors::open(folder_ / "whole/model.safetensors");
  for (const TensorSlot& slot : tensor_slots(weights, converted.config)) {
    if (is_indexer(slot)) {
      ++num_indexer;
      continue;
    }
    const auto& view = whole.at(slot.name);
    if (slot.tensor->scalar_type() != torch::kBFloat16) continue;
    EXPECT_EQ(std::memcmp(slot.tensor->data_ptr(), view.data, view.num_bytes()), 0) << slot.name;
  }
  EXPECT_EQ(num_indexer, 3 * 5);
  EXPECT_EQ(base::read_file(folder_ / "sparse/tokenizer.json"), "{}");
  // Up to top-k tokens the model is what it was.
  const torch::NoGradGuard no_grad;
  const Segment segment{24, 0, nullptr};
  const auto tokens = torch::arange(24, torch::kLong);
  const ForwardOptions training{.form = AttentionForm::kMha, .sparse = true};
  const auto before = forward(load_checkpoint(folder_ / "whole"), tokens, {&segment, 1}, training);
  EXPECT_TRUE(before.equal(forward(converted, tokens, {&segment, 1}, training)));
  const Model trainable = load_checkpoint_for_training(folder_ / "sparse");
  EXPECT_TRUE(trainable.weights.layers[0].self_attn.indexer.wk.weight.requires_grad());
}

TEST_F(ConvertToDsa, AnFp8CheckpointKeepsItsWeightsAndServesWithNewIndexers) {
  const fs::path golden = fs::path(FATHOM_ROOT) / "tests/data/tiny-fp8";
  const auto whole = Safetensors::open(golden / "model.safetensors");
  std::vector<NamedTensor> tensors;
  for (const auto& [name, view] : whole.tensors())
    if (name.find(".indexer.") == std::string::npos) tensors.push_back({name, view});
  write_safetensors(folder_ / "dense/model.safetensors", tensors);
  config_ = base::read_json_file(golden / "config.json");
  config_["model_type"] = "deepseek_v3";
  config_["architectures"] = {"DeepseekV3ForCausalLM"};
  config_["quantization_config"].erase("scale_fmt");  // as V3 has it
  for (const char* key : {"index_n_heads", "index_head_dim", "index_topk"}) config_.erase(key);
  write_config();
  convert_to_dsa(options());
  const Model model = load_checkpoint(folder_ / "sparse");
  const AttentionWeights& attention = model.weights.layers[1].self_attn;
  EXPECT_EQ(attention.q_b_proj.weight.scalar_type(), torch::kByte);
  EXPECT_EQ(attention.indexer.wq_b.weight.scalar_type(), torch::kBFloat16);
  const auto& view = whole.at("model.layers.1.self_attn.q_b_proj.weight");
  EXPECT_EQ(std::memcmp(attention.q_b_proj.weight.data_ptr(), view.data, view.num_bytes()), 0);
  const torch::NoGradGuard no_grad;
  const ForwardOptions serving = serving_options(model);
  EXPECT_EQ(serving.mode, NumericMode::kDeploy);
  KvCache cache(model.config);
  const Segment segment{50, 0, &cache};  // more tokens than top-k
  const auto hidden = forward(model, torch::arange(50, torch::kLong), {&segment, 1}, serving);
  EXPECT_TRUE(hidden.isfinite().all().item<bool>());
}

// V3's files hold MTP's embedding and head again.
TEST_F(ConvertToDsa, CopiesThatAreNoneAreRefused) {
  const auto whole = Safetensors::open(folder_ / "dense/model.safetensors");
  const std::string mtp = fmt::format("model.layers.{}.", model_.config.num_hidden_layers);
  const auto write_with_copies = [&](const TensorView& embedding, const TensorView& head) {
    std::vector<NamedTensor> tensors;
    for (const auto& [name, view] : whole.tensors()) tensors.push_back({name, view});
    tensors.push_back({mtp + "embed_tokens.weight", embedding});
    tensors.push_back({mtp + "shared_head.head.weight", head});
    write_safetensors(folder_ / "new.safetensors", tensors);
    fs::rename(folder_ / "new.safetensors", folder_ / "dense/model.safetensors");
  };
  const TensorView& embedding = whole.at("model.embed_tokens.weight");
  const TensorView& head = whole.at("lm_head.weight");
  write_with_copies(embedding, embedding);
  EXPECT_EQ(error(), (folder_ / "dense").string() + ": " + mtp +
                         "shared_head.head.weight is not what lm_head.weight is; V3.2 has one of "
                         "them for both");
  write_with_copies(embedding, head);
  EXPECT_EQ(error(), "");
}

// Not by the name that its copy had for a while.
TEST_F(ConvertToDsa, NamesTheSourceOfWhatIsWrong) {
  const auto whole = Safetensors::open(folder_ / "dense/model.safetensors");
  std::vector<NamedTensor> tensors;
  for (const auto& [name, view] : whole.tensors())
    if (name != "model.norm.weight") tensors.push_back({name, view});
  write_safetensors(folder_ / "new.safetensors", tensors);
  fs::rename(folder_ / "new.safetensors", folder_ / "dense/model.safetensors");
  const std::string message = error();
  EXPECT_EQ(message.rfind((folder_ / "dense").string() + "/", 0), 0u) << message;
  EXPECT_NE(message.find("model.norm.weight is missing"), std::string::npos) << message;
}

TEST_F(ConvertToDsa, LeavesOtherFoldersAloneAndNothingBehind) {
  fs::create_directories(folder_ / "sparse.tmp");
  base::write_file_atomically(folder_ / "sparse.tmp/mine.txt", "mine");
  DsaConversion with_slash = options();
  with_slash.target += "/";
  convert_to_dsa(with_slash);
  EXPECT_TRUE(fs::exists(folder_ / "sparse/config.json"));
  EXPECT_TRUE(fs::exists(folder_ / "sparse.tmp/mine.txt"));
  for (const auto& entry : fs::directory_iterator(folder_))
    EXPECT_EQ(entry.path().string().find("sparse.tmp."), std::string::npos) << entry.path();
}

TEST_F(ConvertToDsa, RefusesASourceThatHasAnIndexer) {
  fs::copy_file(folder_ / "whole/model.safetensors", folder_ / "dense/model.safetensors",
                fs::copy_options::overwrite_existing);
  EXPECT_NE(error().find("and so has an indexer already"), std::string::npos) << error();
  EXPECT_FALSE(fs::exists(folder_ / "sparse"));
}

TEST_F(ConvertToDsa, RefusesWhatItCannotConvert) {
  config_["model_type"] = "deepseek_v32";
  write_config();
  EXPECT_NE(error().find("model_type is deepseek_v32, which has indexers already"),
            std::string::npos);
  config_["model_type"] = "llama";
  write_config();
  EXPECT_NE(error().find("model_type is \"llama\"; expected \"deepseek_v2\" or \"deepseek_v3\""),
            std::string::npos);
  config_["model_type"] = "deepseek_v3";
  config_["kv_lora_rank"] = 17;
  write_config();
  EXPECT_NE(error().find("has shape"), std::string::npos) << error();
  EXPECT_FALSE(fs::exists(folder_ / "sparse"));
  EXPECT_FALSE(fs::exists(folder_ / "sparse.tmp"));
  config_["kv_lora_rank"] = 16;
  write_config();
  const fs::path weights = folder_ / "dense/model.safetensors";
  fs::rename(weights, folder_ / "elsewhere");
  EXPECT_EQ(error(), (folder_ / "dense").string() +
                         ": neither model.safetensors nor model.safetensors.index.json is there; "
                         "shards need their index");
  fs::rename(folder_ / "elsewhere", weights);
  EXPECT_EQ(error(), "");
  EXPECT_NE(error().find("is there already"), std::string::npos);
}

}  // namespace
}  // namespace fathom::model
