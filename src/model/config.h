// A model's shape, as in a Hugging Face config.json of DeepSeek-V3.2; fields keep its names. Models
// that convert_to_dsa made of V2 keep V2's gates, and the smaller ones their queries without a
// latent.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"

namespace fathom::model {

// YaRN (V3.2: factor 40 from 4,096 tokens). Only the rotary part of q and k is affected.
struct RopeScaling {
  double factor = 1;
  int64_t original_max_position_embeddings = 4096;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;
  double mscale_all_dim = 1;

  bool operator==(const RopeScaling&) const = default;
};

// A router's score of an expert, from its logits: of each alone, or of all together.
enum class ScoringFunc { kSigmoid, kSoftmax };

// How experts are chosen by their scores.
// noaux_tc (V3): biased, within the groups of the greatest sum of their two best.
// group_limited_greedy (V2): unbiased, within the groups of the greatest best.
// greedy (V2-Lite): the best of all; groups are not looked at.
enum class TopkMethod { kNoauxTc, kGroupLimitedGreedy, kGreedy };

struct Config {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_nextn_predict_layers = 0;  // MTP layers after the main ones: 0 or 1
  int64_t intermediate_size = 0;         // of the dense layers
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<RopeScaling> rope_scaling;

  // Multi-head latent attention.
  int64_t num_attention_heads = 0;
  int64_t q_lora_rank = 0;  // 0, null in the file: queries come from the input (V2-Lite)
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;

  // Lightning indexer and top-k selection.
  int64_t index_n_heads = 0;
  int64_t index_head_dim = 0;
  int64_t index_topk = 0;
  bool indexer_rope_interleave = false;  // V3.2: half-split; GLM-5 interleaves

  // Mixture of experts.
  int64_t first_k_dense_replace = 0;  // this many dense layers come first
  int64_t n_routed_experts = 0;
  int64_t n_shared_experts = 0;
  int64_t num_experts_per_tok = 0;
  int64_t moe_intermediate_size = 0;
  ScoringFunc scoring_func = ScoringFunc::kSigmoid;
  TopkMethod topk_method = TopkMethod::kNoauxTc;
  int64_t n_group = 1;
  int64_t topk_group = 1;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1;

  bool tie_word_embeddings = false;
  int64_t bos_token_id = 0;
  int64_t eos_token_id = 1;
  double initializer_range = 0.006;

  bool has_fp8_weights = false;  // quantization_config: e4m3, blocks of 128x128, ue8m0 scales

  // What the indexer's queries are made of: the query latent. Where there is none, the layer's
  // normed input, which is ours; the report has no such model.
  int64_t index_query_dim() const { return q_lora_rank > 0 ? q_lora_rank : hidden_size; }
  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  // Whether routers have a bias that steers their choice and is moved by the experts' loads.
  bool has_expert_bias() const { return topk_method == TopkMethod::kNoauxTc; }
  bool is_moe_layer(int64_t layer) const { return layer >= first_k_dense_replace; }
  // Softmax scale of attention with YaRN's correction: qk_head_dim^-0.5 * mscale^2, where
  // mscale = 0.1 * mscale_all_dim * ln(factor) + 1.
  double softmax_scale() const;
};

// Where a field ("rope_scaling.factor") was written, as errors begin: a file, or a line of it.
using FieldSource = std::function<std::string(std::string_view field)>;

// Every field is used or refused by name; contradictions are Errors that name both fields.
Config parse_config(const Json& json, const FieldSource& source);
Config parse_config(const Json& json, std::string_view source);
Config read_config(const std::filesystem::path& config_json);
Json to_json(const Config& config);

}  // namespace fathom::model
