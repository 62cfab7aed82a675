#include "model/gguf_export.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/json.h"
#include "model/checkpoint.h"
#include "model/safetensors.h"
#include "model/test_gguf.h"

namespace fathom::model {
namespace {

using torch::Tensor;

class GgufExportTest : public testing::Test {
 protected:
  GgufExportTest() { std::filesystem::create_directories(folder_); }
  ~GgufExportTest() override { std::filesystem::remove_all(folder_); }

  GgufFile exported(const std::string& type) {
    export_gguf({.model = nano(), .out = folder_ / "nano.gguf", .type = type});
    return read_gguf(folder_ / "nano.gguf");
  }
  static std::filesystem::path nano() { return std::filesystem::path(FATHOM_ROOT) / "models/nano"; }
  // A copy of nano with one file changed.
  std::string error_with(const std::string& file, const std::string& from, const std::string& to) {
    std::filesystem::copy(nano(), folder_ / "model");
    std::string content = base::read_file(nano() / file);
    const size_t at = content.find(from);
    CHECK(at != std::string::npos);
    base::write_file_atomically(folder_ / "model" / file, content.replace(at, from.size(), to));
    try {
      export_gguf({.model = folder_ / "model", .out = folder_ / "out.gguf"});
    } catch (const Error& e) {
      EXPECT_FALSE(std::filesystem::exists(folder_ / "out.gguf"));
      return e.what();
    }
    return "exported";
  }

  std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("fathom_gguf_export_" + std::to_string(::getpid()));
};

Tensor tensor_of(const GgufFile& file, const std::string& name) {
  const GgufFile::Tensor& tensor = file.tensors.at(name);
  const auto dtype = tensor.type == 0   ? torch::kFloat32
                     : tensor.type == 1 ? torch::kHalf
                                        : torch::kBFloat16;
  const std::vector<int64_t> shape(tensor.dims.rbegin(), tensor.dims.rend());
  return torch::from_blob(const_cast<char*>(tensor.data), shape, dtype).to(torch::kFloat32);
}

TEST_F(GgufExportTest, HoldsTheModelsTensorsUnchanged) {
  const GgufFile file = exported("bf16");  // as the checkpoint has them
  const Model model = load_checkpoint(nano());
  const Config& c = model.config;
  const Weights& w = model.weights;
  const auto same = [&](const std::string& name, const Tensor& expected) {
    EXPECT_TRUE(tensor_of(file, name).equal(expected.to(torch::kFloat32))) << name;
  };
  same("token_embd.weight", w.embed_tokens);
  same("output_norm.weight", w.norm);
  same("blk.0.ffn_down.weight", w.layers[0].mlp->down_proj.weight);
  same("blk.2.attn_kv_a_mqa.weight", w.layers[2].self_attn.kv_a_proj_with_mqa.weight);
  same("blk.2.indexer.k_norm.bias", w.layers[2].self_attn.indexer.k_norm_bias);
  same("blk.2.exp_probs_b.bias", w.layers[2].moe->e_score_correction_bias);
  same("blk.5.nextn.eh_proj.weight", w.mtp->eh_proj.weight);
  same("blk.5.attn_output.weight", w.mtp->layer.self_attn.o_proj.weight);
  EXPECT_TRUE(tensor_of(file, "blk.1.ffn_up_exps.weight")[6].equal(
      w.layers[1].moe->experts[6].up_proj.weight.to(torch::kFloat32)));

  // Head 3's part of kv_b_proj: rows of keys, then rows of values.
  const int64_t row = 3 * (c.qk_nope_head_dim + c.v_head_dim);
  const Tensor kv_b = w.layers[0].self_attn.kv_b_proj.weight.to(torch::kFloat32);
  EXPECT_TRUE(tensor_of(file, "blk.0.attn_k_b.weight")[3].equal(
      kv_b.narrow(0, row, c.qk_nope_head_dim).t()));
  EXPECT_TRUE(tensor_of(file, "blk.0.attn_v_b.weight")[3].equal(
      kv_b.narrow(0, row + c.qk_nope_head_dim, c.v_head_dim)));
}

TEST_F(GgufExportTest, HoldsTheConfigAndTheTokenizer) {
  const GgufFile file = exported("f16");
  EXPECT_EQ(file.texts.at("general.architecture"), "deepseek32");
  EXPECT_EQ(file.numbers.at("general.file_type"), 1);
  EXPECT_EQ(file.numbers.at("deepseek32.block_count"), 6);  // MTP's layer is the last
  EXPECT_EQ(file.numbers.at("deepseek32.attention.key_length"), 128 + 16);
  EXPECT_EQ(file.numbers.at("deepseek32.attention.indexer.top_k"), 512);
  EXPECT_EQ(file.tensors.at("blk.3.ffn_gate_exps.weight").type, 1);
  EXPECT_EQ(file.tensors.at("blk.3.ffn_gate_inp.weight").type, 0);
  const auto& tokens = file.lists.at("tokenizer.ggml.tokens");
  const auto& types = file.lists.at("tokenizer.ggml.token_type");
  ASSERT_EQ(tokens.size(), 8192);
  ASSERT_EQ(types.size(), 8192);
  EXPECT_EQ(types[0], "3");  // a special token
  EXPECT_EQ(tokens[0].substr(0, 1), "<");
  EXPECT_FALSE(file.lists.at("tokenizer.ggml.merges").empty());
}

TEST_F(GgufExportTest, RefusesAModelThatTheFormatCannotDescribe) {
  EXPECT_NE(error_with("tokenizer.json", "\\\\p{N}{1,3}", "\\\\p{N}{1,2}")
                .find("the splits of DeepSeek-V3"),
            std::string::npos);
}

TEST_F(GgufExportTest, RefusesAnInterleavedIndexer) {
  EXPECT_NE(error_with("config.json", "\"index_topk\"",
                       "\"indexer_rope_interleave\": true, \"index_topk\"")
                .find("knows only the half-split RoPE"),
            std::string::npos);
}

TEST_F(GgufExportTest, RefusesToWriteOverTheModel) {
  std::filesystem::copy(nano(), folder_ / "model");
  const auto tokenizer = folder_ / "model/tokenizer.json";
  EXPECT_THROW(export_gguf({.model = folder_ / "model", .out = tokenizer}), Error);
  EXPECT_EQ(base::read_file(tokenizer), base::read_file(nano() / "tokenizer.json"));
}

// The first number of a tensor, in the place of which its file holds `bits`.
TEST_F(GgufExportTest, RefusesNumbersThatTheFileCannotHold) {
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  const auto error_with_bits = [&](uint16_t bits, const std::string& type) {
    std::filesystem::remove_all(folder_ / "model");
    std::filesystem::copy(nano(), folder_ / "model");
    std::string content = base::read_file(folder_ / "model/model.safetensors");
    const auto file = Safetensors::open(nano() / "model.safetensors");
    const auto at = file.at(name).data - file.file()->bytes().data();
    std::memcpy(content.data() + at, &bits, sizeof bits);
    base::write_file_atomically(folder_ / "model/model.safetensors", content);
    try {
      export_gguf({.model = folder_ / "model", .out = folder_ / "out.gguf", .type = type});
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("exported");
  };
  EXPECT_EQ(error_with_bits(0x7fc0, "f32"),
            "blk.0.ffn_up.weight: a value is not finite; the weights are damaged, get them again");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out.gguf"));
  EXPECT_EQ(error_with_bits(0x4974, "f16"),  // 999,424
            "blk.0.ffn_up.weight: a value is too large for f16; write --type bf16 or f32");
  EXPECT_EQ(error_with_bits(0x4974, "bf16"), "exported");
}

TEST_F(GgufExportTest, RefusesGatesOfV2) {
  EXPECT_NE(
      error_with("config.json", "\"scoring_func\": \"sigmoid\"", "\"scoring_func\": \"softmax\"")
          .find("knows only the gates of V3.2"),
      std::string::npos);
}

}  // namespace
}  // namespace fathom::model
