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

TEST(Config, ReadsTheGatesOfV2) {
  Json json = golden_config();
  json["scoring_func"] = "softmax";
  json["topk_method"] = "group_limited_greedy";
  const Config config = parse_config(json, "config.json");
  EXPECT_EQ(config.scoring_func, ScoringFunc::kSoftmax);
  EXPECT_EQ(config.topk_method, TopkMethod::kGroupLimitedGreedy);
  EXPECT_FALSE(config.has_expert_bias());
  EXPECT_EQ(to_json(config)["scoring_func"], "softmax");
  EXPECT_EQ(to_json(config)["topk_method"], "group_limited_greedy");
  json["n_group"] = json["n_routed_experts"];  // of one expert each
  EXPECT_NO_THROW(parse_config(json, "config.json"));
  json["topk_method"] = "greedy";  // which does not look at groups
  json["n_group"] = 3;
  EXPECT_EQ(parse_config(json, "config.json").topk_method, TopkMethod::kGreedy);
}

TEST(Config, ReadsAModelWithoutAQueryLatent) {
  Json json = golden_config();
  EXPECT_EQ(parse_config(json, "config.json").index_query_dim(), json["q_lora_rank"]);
  json["q_lora_rank"] = nullptr;
  const Config config = parse_config(json, "config.json");
  EXPECT_EQ(config.q_lora_rank, 0);
  EXPECT_EQ(config.index_query_dim(), config.hidden_size);
  EXPECT_TRUE(to_json(config)["q_lora_rank"].is_null());
}

// Transformers 5 writes them, and older versions whatever they know of any model.
TEST(Config, ReadsRopeParametersAndFieldsThatSayNothing) {
  const Json golden = golden_config();
  Json json = golden;
  json["rope_parameters"] = json["rope_scaling"];
  json["rope_parameters"]["rope_type"] = "yarn";
  json["rope_parameters"]["rope_theta"] = json["rope_theta"];
  EXPECT_EQ(to_json(parse_config(json, "both")), to_json(parse_config(golden, "earlier")));
  json.erase("rope_scaling");
  json.erase("rope_theta");
  json["head_dim"] = json["qk_rope_head_dim"];
  json["qk_head_dim"] =
      json["qk_nope_head_dim"].get<int64_t>() + json["qk_rope_head_dim"].get<int64_t>();
  json["pruned_heads"] = Json::object();
  EXPECT_EQ(to_json(parse_config(json, "later")), to_json(parse_config(golden, "earlier")));
  json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 50000}};
  const Config config = parse_config(json, "not stretched");
  EXPECT_FALSE(config.rope_scaling);
  EXPECT_EQ(config.rope_theta, 50000);
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
      {"queries", [](Json& c) { c.erase("q_lora_rank"); },
       "c.json: field \"q_lora_rank\" is missing; expected an integer or null"},
      {"latent", [](Json& c) { c["q_lora_rank"] = 0; },
       "c.json: field \"q_lora_rank\" is 0; expected 1 to 16777216"},
      {"type", [](Json& c) { c["hidden_size"] = "wide"; },
       "c.json: field \"hidden_size\" is \"wide\"; expected an integer"},
      {"zero", [](Json& c) { c["vocab_size"] = 0; },
       "c.json: field \"vocab_size\" is 0; expected 1 to 16777216"},
      {"unknown", [](Json& c) { c["sliding_window"] = 4096; },
       "c.json: field \"sliding_window\" is unknown; remove it if the model does not need it"},
      {"unsupported", [](Json& c) { c["hidden_act"] = "gelu"; },
       "c.json: field \"hidden_act\" is \"gelu\"; only \"silu\" is supported"},
      {"scores", [](Json& c) { c["scoring_func"] = "sqrtsoftplus"; },
       "c.json: field \"scoring_func\" is \"sqrtsoftplus\"; expected \"sigmoid\" or \"softmax\""},
      {"choice", [](Json& c) { c["topk_method"] = 1; },
       "c.json: field \"topk_method\" is 1; expected \"noaux_tc\" or \"group_limited_greedy\" or "
       "\"greedy\""},
      {"other model", [](Json& c) { c["model_type"] = "llama"; },
       "c.json: field \"model_type\" is \"llama\"; only \"deepseek_v32\" is supported"},
      {"contradiction", [](Json& c) { c["num_experts_per_tok"] = 9; },
       "c.json: num_experts_per_tok is 9 but n_routed_experts is 8; expected num_experts_per_tok "
       "<= n_routed_experts"},
      {"groups", [](Json& c) { c["n_group"] = 3; },
       "c.json: n_routed_experts is 8 and n_group is 3; expected a multiple"},
      {"odd rope", [](Json& c) { c["qk_rope_head_dim"] = 15; },
       "c.json: qk_rope_head_dim is 15; expected an even number"},
      {"hadamard", [](Json& c) { c["index_head_dim"] = 96; },
       "c.json: index_head_dim is 96; expected a power of two (Hadamard transform)"},
      {"yarn", [](Json& c) { c["rope_scaling"]["type"] = "linear"; },
       "c.json: field \"rope_scaling.type\" is \"linear\"; only \"yarn\" is supported"},
      {"two ropes",
       [](Json& c) {
         c["rope_parameters"] = {{"rope_type", "default"}};
       },
       "c.json: rope_parameters and rope_scaling say different things; keep the one that is meant"},
      {"two thetas",
       [](Json& c) {
         c.erase("rope_scaling");
         c["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 7}};
       },
       "c.json: rope_parameters and rope_theta say different things; keep the one that is meant"},
      {"two thetas of one scaling",
       [](Json& c) {
         c["rope_parameters"] = c["rope_scaling"];
         c["rope_parameters"]["rope_theta"] = 7;
       },
       "c.json: rope_parameters and rope_theta say different things; keep the one that is meant"},
      {"rope parameters",
       [](Json& c) {
         c["rope_parameters"] = {{"rope_type", "longrope"}};
       },
       "c.json: field \"rope_parameters.rope_type\" is \"longrope\"; only \"default\" and "
       "\"yarn\" are supported"},
      {"no scaling of the default",
       [](Json& c) {
         c["rope_parameters"] = {{"rope_type", "default"}, {"factor", 4}};
       },
       "c.json: field \"rope_parameters.factor\" is unknown; remove it if the model does not need "
       "it"},
      {"heads", [](Json& c) { c["qk_head_dim"] = 7; },
       "c.json: field \"qk_head_dim\" is 7; only 48 is supported"},
      {"a trillion layers", [](Json& c) { c["num_hidden_layers"] = 1000000000000; },
       "c.json: field \"num_hidden_layers\" is 1000000000000; expected 1 to 1024"},
      {"a context of 2^64", [](Json& c) { c["max_position_embeddings"] = 18446744073709551615u; },
       "c.json: field \"max_position_embeddings\" is 18446744073709551615; expected 1 to "
       "16777216"},
      {"experts",
       [](Json& c) {
         c["num_hidden_layers"] = 1024;
         c["n_routed_experts"] = 1024;
       },
       "c.json: num_hidden_layers * n_routed_experts is 1048576 but the most experts supported is "
       "131072; expected num_hidden_layers * n_routed_experts <= the most experts supported"},
      {"MTP", [](Json& c) { c["num_nextn_predict_layers"] = 2; },
       "c.json: field \"num_nextn_predict_layers\" is 2; expected 0 to 1"},
      {"epsilon", [](Json& c) { c["rms_norm_eps"] = -1; },
       "c.json: field \"rms_norm_eps\" is -1; expected above 0"},
      {"theta", [](Json& c) { c["rope_theta"] = 0; },
       "c.json: field \"rope_theta\" is 0; expected above 0"},
      {"gate scale", [](Json& c) { c["routed_scaling_factor"] = -2.5; },
       "c.json: field \"routed_scaling_factor\" is -2.5; expected above 0"},
      {"initial values", [](Json& c) { c["initializer_range"] = -0.02; },
       "c.json: field \"initializer_range\" is -0.02; expected above 0"},
      {"EOS", [](Json& c) { c["eos_token_id"] = 256; },
       "c.json: eos_token_id is 256 but vocab_size - 1 is 255; expected eos_token_id <= vocab_size "
       "- 1"},
      {"BOS", [](Json& c) { c["bos_token_id"] = -1; },
       "c.json: field \"bos_token_id\" is -1; expected 0 to 16777216"},
      {"betas",
       [](Json& c) {
         c["rope_scaling"]["beta_fast"] = 1;
         c["rope_scaling"]["beta_slow"] = 32;
       },
       "c.json: rope_scaling.beta_fast is 1 and rope_scaling.beta_slow is 32; expected beta_fast > "
       "beta_slow"},
      {"no beta", [](Json& c) { c["rope_scaling"]["beta_slow"] = 0; },
       "c.json: field \"rope_scaling.beta_slow\" is 0; expected above 0"},
      {"original context",
       [](Json& c) { c["rope_scaling"]["original_max_position_embeddings"] = 512; },
       "c.json: rope_scaling.original_max_position_embeddings is 512 but max_position_embeddings "
       "is 256; expected rope_scaling.original_max_position_embeddings <= max_position_embeddings"},
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
