#include "server/text_model.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "model/safetensors.h"

namespace fathom::server {
namespace {

const std::filesystem::path kNano = std::filesystem::path(FATHOM_ROOT) / "models/nano";

// A copy of models/nano by links, in which a test replaces a file.
class TextModelTest : public testing::Test {
 protected:
  TextModelTest()
      : folder_(std::filesystem::path(testing::TempDir()) /
                ("fathom_text_model_" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    for (const char* name :
         {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"})
      std::filesystem::create_symlink(kNano / name, folder_ / name);
  }
  ~TextModelTest() override { std::filesystem::remove_all(folder_); }

  void replace(const std::string& name, const std::string& content) {
    std::filesystem::remove(folder_ / name);
    base::write_file_atomically(folder_ / name, content);
  }
  void change(const std::string& name, const std::string& pointer, const Json& value) {
    Json json = base::read_json_file(kNano / name);
    json[Json::json_pointer(pointer)] = value;
    replace(name, json.dump());
  }
  // Without the folder in front.
  std::string error() {
    try {
      load_text_model(folder_);
    } catch (const Error& e) {
      return std::string(e.what()).substr(folder_.string().size() + 1);
    }
    return "loaded";
  }

  std::filesystem::path folder_;
};

TEST_F(TextModelTest, SamplesAsTheGenerationConfigSays) {
  EXPECT_EQ(load_text_model(kNano).sampling.temperature, 0.8);
  EXPECT_EQ(load_text_model(kNano).sampling.top_p, 0.95);
  replace("generation_config.json", R"({"do_sample": false, "top_k": 7, "eos_token_id": [1]})");
  EXPECT_EQ(load_text_model(folder_).sampling.temperature, 0);
  EXPECT_EQ(load_text_model(folder_).sampling.top_k, 7);
  EXPECT_EQ(load_text_model(folder_).stop_token_ids, std::vector<int32_t>{1});
  replace("generation_config.json", R"({"eos_token_id": 17})");
  EXPECT_EQ(load_text_model(folder_).stop_token_ids, std::vector<int32_t>{17});
  std::filesystem::remove(folder_ / "generation_config.json");
  EXPECT_EQ(load_text_model(folder_).sampling.temperature, 1);
}

TEST_F(TextModelTest, RefusesAnImpossibleGenerationConfig) {
  replace("generation_config.json", R"({"temperature": 9})");
  EXPECT_EQ(error(), "generation_config.json: temperature is 9; expected 0 to 2");
  replace("generation_config.json", R"({"top_p": "all"})");
  EXPECT_EQ(error(), "generation_config.json: field \"top_p\" is \"all\"; expected a number");
  for (const char* top_k : {"-1", "2.5", "1e12"}) {
    replace("generation_config.json", fmt::format(R"({{"top_k": {}}})", top_k));
    EXPECT_TRUE(error().starts_with("generation_config.json: field \"top_k\" is ")) << error();
  }
  for (const char* ids : {"[1, 99999]", "-1", "\"end\""}) {
    replace("generation_config.json", fmt::format(R"({{"eos_token_id": {}}})", ids));
    EXPECT_TRUE(error().ends_with("expected token ids from 0 to 8191")) << error();
  }
  replace("generation_config.json", "[]");
  EXPECT_EQ(error(), "generation_config.json: a generation config is a JSON object");
}

// As published ones are, for even shapes: what lies beyond the tokenizer's ids is never drawn.
TEST_F(TextModelTest, APaddedVocabularyIsCutToTheTokenizers) {
  const auto nano = model::Safetensors::open(kNano / "model.safetensors");
  std::vector<std::string> padded;
  padded.reserve(2);
  std::vector<model::NamedTensor> tensors;
  for (auto [name, view] : nano.tensors()) {
    if (name == "model.embed_tokens.weight" || name == "lm_head.weight") {
      view.shape[0] += 8;
      padded.emplace_back(reinterpret_cast<const char*>(view.data), view.num_bytes() - 8 * 2 * 192);
      padded.back().append(8 * 2 * 192, '\x42');
      view.data = reinterpret_cast<const std::byte*>(padded.back().data());
    }
    tensors.push_back({name, view});
  }
  std::filesystem::remove(folder_ / "model.safetensors");
  model::write_safetensors(folder_ / "model.safetensors", tensors);
  change("config.json", "/vocab_size", 8200);
  EXPECT_EQ(model::config_of(*load_text_model(folder_).model).vocab_size, 8192);
}

TEST_F(TextModelTest, RefusesTheTokenizerOfAnotherModel) {
  Json tokenizer = base::read_json_file(kNano / "tokenizer.json");
  tokenizer["added_tokens"].push_back({{"id", 8192}, {"content", "<more>"}});
  replace("tokenizer.json", tokenizer.dump());
  EXPECT_EQ(error(),
            "tokenizer.json: has ids up to 8192, but config.json's vocab_size is 8192; it is "
            "another model's tokenizer");
  replace("tokenizer.json", base::read_file(kNano / "tokenizer.json"));
  change("config.json", "/eos_token_id", 5);
  EXPECT_EQ(error(),
            "tokenizer.json: <｜end▁of▁sentence｜> is token 1, but config.json's eos_token_id is "
            "5; it is another model's tokenizer");
}

}  // namespace
}  // namespace fathom::server
