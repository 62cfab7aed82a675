// Dense checkpoints of the DeepSeek-V2 and V3 family as their makers publish them, as small as they
// can be: tensors by the published names and shapes, written down here once more, of random numbers
// in BF16.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "model/safetensors.h"
#include "model/tensor.h"

namespace fathom::model {

// config.json of two layers, the second with experts. DeepSeek-V2's.
inline Json dense_v2_config() {
  return Json::parse(R"({
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
    "attention_bias": false, "attention_dropout": 0.0, "aux_loss_alpha": 0.001,
    "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 1,
    "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 64,
    "kv_lora_rank": 16, "max_position_embeddings": 128, "moe_intermediate_size": 16,
    "moe_layer_freq": 1, "n_group": 4, "n_routed_experts": 8, "n_shared_experts": 2,
    "norm_topk_prob": false, "num_attention_heads": 2, "num_experts_per_tok": 3,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "pretraining_tp": 1, "q_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 4, "mscale": 0.707,
                     "mscale_all_dim": 0.707, "original_max_position_embeddings": 32,
                     "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 16.0, "scoring_func": "softmax",
    "seq_aux": true, "tie_word_embeddings": false, "topk_group": 2,
    "topk_method": "group_limited_greedy", "torch_dtype": "bfloat16", "use_cache": true,
    "v_head_dim": 8, "vocab_size": 64
  })");
}

// V2-Lite's: no query latent, no groups.
inline Json dense_v2_lite_config() {
  Json config = dense_v2_config();
  config.update({{"q_lora_rank", nullptr},
                 {"n_group", 1},
                 {"topk_group", 1},
                 {"topk_method", "greedy"},
                 {"routed_scaling_factor", 1.0}});
  return config;
}

// Moonlight's: V3's gates, no query latent, no YaRN.
inline Json dense_moonlight_config() {
  Json config = dense_v2_lite_config();
  config.update({{"model_type", "deepseek_v3"},
                 {"architectures", {"DeepseekV3ForCausalLM"}},
                 {"num_nextn_predict_layers", 0},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 50000.0},
                 {"scoring_func", "sigmoid"},
                 {"topk_method", "noaux_tc"},
                 {"norm_topk_prob", true},
                 {"routed_scaling_factor", 2.446}});
  config.erase("rope_scaling");
  return config;
}

// Names of the three, for tests of each.
inline auto dense_kinds() { return testing::Values("V2", "V2Lite", "Moonlight"); }
inline Json dense_config(const std::string& kind) {
  if (kind == "V2") return dense_v2_config();
  return kind == "V2Lite" ? dense_v2_lite_config() : dense_moonlight_config();
}

class DenseCheckpoint {
 public:
  explicit DenseCheckpoint(Json config) : config_(std::move(config)) {
    torch::manual_seed(11);
    add("model.embed_tokens", {size("vocab_size"), hidden_});
    for (int64_t layer = 0; layer < size("num_hidden_layers"); ++layer) add_layer(layer);
    add("model.norm", {hidden_});
    add("lm_head", {size("vocab_size"), hidden_});
  }

  const Json& config() const { return config_; }
  const std::map<std::string, torch::Tensor>& tensors() const { return tensors_; }

  void write(const std::filesystem::path& folder) const {
    std::filesystem::create_directories(folder);
    std::vector<NamedTensor> named;
    for (const auto& [name, tensor] : tensors_)
      named.push_back({name,
                       {tensor.scalar_type() == torch::kFloat32 ? DType::kF32 : DType::kBF16,
                        tensor.sizes().vec(), static_cast<const std::byte*>(tensor.data_ptr())}});
    write_safetensors(folder / "model.safetensors", named, {{"format", "pt"}});
    base::write_file_atomically(folder / "config.json", config_.dump());
  }

 private:
  int64_t size(const char* key) const { return config_.at(key).get<int64_t>(); }

  // Vectors are norms.
  void add(const std::string& name, std::vector<int64_t> shape) {
    const torch::Tensor random = torch::randn(shape);
    tensors_[name + ".weight"] =
        (shape.size() == 1 ? 1 + 0.1 * random : 0.2 * random).to(torch::kBFloat16);
  }

  void add_layer(int64_t layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm", {hidden_});
    add(prefix + "post_attention_layernorm", {hidden_});
    add_attention(prefix + "self_attn.");
    if (layer < size("first_k_dense_replace")) {
      add_mlp(prefix + "mlp.", size("intermediate_size"));
      return;
    }
    const int64_t experts = size("n_routed_experts"), width = size("moe_intermediate_size");
    add(prefix + "mlp.gate", {experts, hidden_});
    if (config_.at("topk_method") == "noaux_tc")
      tensors_[prefix + "mlp.gate.e_score_correction_bias"] = 0.1 * torch::randn({experts});
    for (int64_t e = 0; e < experts; ++e)
      add_mlp(prefix + "mlp.experts." + std::to_string(e) + ".", width);
    add_mlp(prefix + "mlp.shared_experts.", width * size("n_shared_experts"));
  }

  void add_attention(const std::string& prefix) {
    const int64_t heads = size("num_attention_heads"), rope = size("qk_rope_head_dim");
    const int64_t nope = size("qk_nope_head_dim"), v = size("v_head_dim");
    const int64_t latent = size("kv_lora_rank");
    if (config_.at("q_lora_rank").is_null()) {
      add(prefix + "q_proj", {heads * (nope + rope), hidden_});
    } else {
      add(prefix + "q_a_proj", {size("q_lora_rank"), hidden_});
      add(prefix + "q_a_layernorm", {size("q_lora_rank")});
      add(prefix + "q_b_proj", {heads * (nope + rope), size("q_lora_rank")});
    }
    add(prefix + "kv_a_proj_with_mqa", {latent + rope, hidden_});
    add(prefix + "kv_a_layernorm", {latent});
    add(prefix + "kv_b_proj", {heads * (nope + v), latent});
    add(prefix + "o_proj", {hidden_, heads * v});
  }

  void add_mlp(const std::string& prefix, int64_t width) {
    add(prefix + "gate_proj", {width, hidden_});
    add(prefix + "up_proj", {width, hidden_});
    add(prefix + "down_proj", {hidden_, width});
  }

  Json config_;
  int64_t hidden_ = size("hidden_size");
  std::map<std::string, torch::Tensor> tensors_;
};

}  // namespace fathom::model
