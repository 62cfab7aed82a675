#include "model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/check.h"

namespace fathom::model {
namespace {

Json golden_config() {
  return base::read_json_file(std::string(FATHOM_ROOT) + "/tests/data/tiny-fp8/config.json");
}

TEST(Config, ReadsAHuggingFaceConfigAndWritesItBack) {
  const Config config = parse_config(golden_config(), "config.json");
  EXPECT_EQ(config.num_hidden_layers, 3);
  EXPECT_TRUE(config.has_fp8_weights);
  EXPECT_EQ(config.rope_scaling->factor, 4.0);
  const Config again = parse_config(to_json(config), "written");
  EXPECT_EQ(to_json(again), to_json(config));
}

TEST(Config, SoftmaxScaleOfTheReleasedModel) {
  Config config;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.max_position_embeddings = 163840;
  config.rope_scaling = RopeScaling{.factor = 40};
  EXPECT_NEAR(config.softmax_scale(), 0.1352337788, 1e-9);
  config.max_position_embeddings = 4096;  // YaRN is off up to the original context
  EXPECT_NEAR(config.softmax_scale(), 1 / std::sqrt(192.0), 1e-12);
}

struct BadConfig {
  const char* name;
  std::function<void(Json&)> change;
  const char* message;
};

TEST(Config, RefusesByName) {
  const BadConfig table[] = {
      {"missing", [](Json& c) { c.erase("kv_lora_rank"); },
       "c.json: field \"kv_lora_rank\" is missing; expected an integer"},
      {"type", [](Json& c) { c["hidden_size"] = "wide"; },
       "c.json: field \"hidden_size\" is \"wide\"; expected an integer"},
      {"zero", [](Json& c) { c["vocab_size"] = 0; },
       "c.json: field \"vocab_size\" is 0; expected at least 1"},
      {"unknown", [](Json& c) { c["sliding_window"] = 4096; },
       "c.json: field \"sliding_window\" is unknown; remove it if the model does not need it"},
      {"unsupported", [](Json& c) { c["scoring_func"] = "softmax"; },
       "c.json: field \"scoring_func\" is \"softmax\"; only \"sigmoid\" is supported"},
      {"other model", [](Json& c) { c["model_type"] = "llama"; },
       "c.json: field \"model_type\" is \"llama\"; only \"deepseek_v32\" is supported"},
      {"contradiction", [](Json& c) { c["num_experts_per_tok"] = 9; },
       "c.json: num_experts_per_tok is 9 but n_routed_experts is 8; expected num_experts_per_tok "
       "<= "
       "n_routed_experts"},
      {"groups", [](Json& c) { c["n_group"] = 3; },
       "c.json: n_routed_experts is 8 and n_group is 3; expected a multiple"},
      {"odd rope", [](Json& c) { c["qk_rope_head_dim"] = 15; },
       "c.json: qk_rope_head_dim is 15; expected an even number"},
      {"hadamard", [](Json& c) { c["index_head_dim"] = 96; },
       "c.json: index_head_dim is 96; expected a power of two (Hadamard transform)"},
      {"yarn", [](Json& c) { c["rope_scaling"]["type"] = "linear"; },
       "c.json: field \"rope_scaling.type\" is \"linear\"; only \"yarn\" is supported"},
      {"blocks",
       [](Json& c) {
         c["quantization_config"]["weight_block_size"] = {64, 64};
       },
       "c.json: field \"quantization_config.weight_block_size\" is [64,64]; only [128,128] is "
       "supported"},
  };
  for (const auto& [name, change, message] : table) {
    Json json = golden_config();
    change(json);
    try {
      parse_config(json, "c.json");
      ADD_FAILURE() << name << " was accepted";
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), message) << name;
    }
  }
}

}  // namespace
}  // namespace fathom::model
