// Every tensor of a model, its name in a Hugging Face checkpoint and its shape: one registry that
// loading, saving, initialisation and the optimizer walk.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/tensor.h"

namespace fathom::model {

// y = x W^T. weight: [out, in] in f32 (training) or as stored: bf16, f16, or e4m3 held as uint8
// with scale_inv [ceil(out/128), ceil(in/128)] f32 (a factor, despite the name).
struct Linear {
  torch::Tensor weight;
  torch::Tensor scale_inv;
};

struct IndexerWeights {
  Linear wq_b;                  // [index_n_heads * index_head_dim, index_query_dim]
  Linear wk;                    // [index_head_dim, hidden_size]
  torch::Tensor k_norm_weight;  // [index_head_dim]
  torch::Tensor k_norm_bias;    // [index_head_dim]
  Linear weights_proj;          // [index_n_heads, hidden_size]
};

struct AttentionWeights {
  Linear q_proj;                 // [heads * (nope + rope), hidden_size]; where q_lora_rank is 0, in
                                 // the place of the next three
  Linear q_a_proj;               // [q_lora_rank, hidden_size]
  torch::Tensor q_a_layernorm;   // [q_lora_rank]
  Linear q_b_proj;               // [heads * (nope + rope), q_lora_rank]
  Linear kv_a_proj_with_mqa;     // [kv_lora_rank + rope, hidden_size]
  torch::Tensor kv_a_layernorm;  // [kv_lora_rank]
  Linear kv_b_proj;              // [heads * (nope + v), kv_lora_rank]
  Linear o_proj;                 // [hidden_size, heads * v]
  IndexerWeights indexer;
};

struct MlpWeights {
  Linear gate_proj;  // [intermediate, hidden_size]
  Linear up_proj;    // [intermediate, hidden_size]
  Linear down_proj;  // [hidden_size, intermediate]
};

struct MoeWeights {
  Linear gate;                            // [n_routed_experts, hidden_size]
  torch::Tensor e_score_correction_bias;  // [n_routed_experts] f32, steers selection only;
                                          // undefined where the config has no expert bias
  std::vector<MlpWeights> experts;
  MlpWeights shared_experts;
};

struct LayerWeights {
  torch::Tensor input_layernorm;  // [hidden_size]
  AttentionWeights self_attn;
  torch::Tensor post_attention_layernorm;  // [hidden_size]
  std::optional<MlpWeights> mlp;           // dense layers
  std::optional<MoeWeights> moe;           // the others
};

// The multi-token-prediction layer (report of V3, section 2.2); embedding and head are shared with
// the main model.
struct MtpWeights {
  torch::Tensor enorm;  // [hidden_size]
  torch::Tensor hnorm;  // [hidden_size]
  Linear eh_proj;       // [hidden_size, 2 * hidden_size], the embedding's half first
  LayerWeights layer;
  torch::Tensor shared_head_norm;  // [hidden_size]
};

struct Weights {
  torch::Tensor embed_tokens;  // [vocab_size, hidden_size]
  std::vector<LayerWeights> layers;
  torch::Tensor norm;  // [hidden_size]
  Linear lm_head;      // [vocab_size, hidden_size]
  std::optional<MtpWeights> mtp;
};

// What kind of tensor it is: decides its initial value, its dtype on disk and its weight decay.
enum class Role { kMatrix, kEmbedding, kRouter, kNorm, kBias, kExpertBias };

struct TensorSlot {
  std::string name;  // as on disk: "model.layers.0.self_attn.q_a_proj.weight"
  std::vector<int64_t> shape;
  Role role;
  bool may_be_fp8;  // the checkpoint may hold e4m3 with a scale beside it
  torch::Tensor* tensor;
  torch::Tensor* scale_inv;  // null where there can be none
  int64_t num_heads = 1;     // rows are so many heads' one behind another
};

// Whether it belongs to a lightning indexer, which trains by a loss of its own.
bool is_indexer(const TensorSlot& slot);
// Whether it belongs to the MTP layer alone: embedding and head are the model's.
bool is_mtp(const TensorSlot& slot, const Config& config);

// A Weights with all layers and experts present and every tensor undefined.
Weights empty_weights(const Config& config);
// All slots of `weights`, in order of use.
std::vector<TensorSlot> tensor_slots(Weights& weights, const Config& config);

}  // namespace fathom::model
