#include "model/weights.h"

namespace fathom::model {
namespace {

using Shape = std::vector<int64_t>;

// Appends the slots of one part of the model after another, in order of use.
class SlotWriter {
 public:
  SlotWriter(const Config& config, std::vector<TensorSlot>& slots) : c_(config), slots_(slots) {}

  void embedding(const std::string& name, torch::Tensor& tensor) {
    add(name, {c_.vocab_size, c_.hidden_size}, Role::kEmbedding, tensor);
  }
  void norm(const std::string& name, int64_t size, torch::Tensor& weight) {
    add(name, {size}, Role::kNorm, weight);
  }
  void head(Linear& linear) {
    add("lm_head.weight", {c_.vocab_size, c_.hidden_size}, Role::kEmbedding, linear.weight);
  }
  void matrix(const std::string& name, int64_t out, int64_t in, Linear& linear,
              int64_t num_heads = 1) {
    slots_.push_back({name + ".weight",
                      {out, in},
                      Role::kMatrix,
                      true,
                      &linear.weight,
                      &linear.scale_inv,
                      num_heads});
  }

  void attention(const std::string& prefix, AttentionWeights& w) {
    const int64_t heads = c_.num_attention_heads;
    queries(prefix, w);
    matrix(prefix + "kv_a_proj_with_mqa", c_.kv_lora_rank + c_.qk_rope_head_dim, c_.hidden_size,
           w.kv_a_proj_with_mqa);
    norm(prefix + "kv_a_layernorm.weight", c_.kv_lora_rank, w.kv_a_layernorm);
    matrix(prefix + "kv_b_proj", heads * (c_.qk_nope_head_dim + c_.v_head_dim), c_.kv_lora_rank,
           w.kv_b_proj, heads);
    matrix(prefix + "o_proj", c_.hidden_size, heads * c_.v_head_dim, w.o_proj);
    indexer(prefix + "indexer.", w.indexer);
  }

  void queries(const std::string& prefix, AttentionWeights& w) {
    const int64_t heads = c_.num_attention_heads, rows = heads * c_.qk_head_dim();
    if (c_.q_lora_rank == 0) {
      matrix(prefix + "q_proj", rows, c_.hidden_size, w.q_proj, heads);
      return;
    }
    matrix(prefix + "q_a_proj", c_.q_lora_rank, c_.hidden_size, w.q_a_proj);
    norm(prefix + "q_a_layernorm.weight", c_.q_lora_rank, w.q_a_layernorm);
    matrix(prefix + "q_b_proj", rows, c_.q_lora_rank, w.q_b_proj, heads);
  }

  void indexer(const std::string& prefix, IndexerWeights& w) {
    matrix(prefix + "wq_b", c_.index_n_heads * c_.index_head_dim, c_.index_query_dim(), w.wq_b);
    matrix(prefix + "wk", c_.index_head_dim, c_.hidden_size, w.wk);
    norm(prefix + "k_norm.weight", c_.index_head_dim, w.k_norm_weight);
    add(prefix + "k_norm.bias", {c_.index_head_dim}, Role::kBias, w.k_norm_bias);
    add(prefix + "weights_proj.weight", {c_.index_n_heads, c_.hidden_size}, Role::kRouter,
        w.weights_proj.weight);
  }

  void mlp(const std::string& prefix, int64_t intermediate, MlpWeights& w) {
    matrix(prefix + "gate_proj", intermediate, c_.hidden_size, w.gate_proj);
    matrix(prefix + "up_proj", intermediate, c_.hidden_size, w.up_proj);
    matrix(prefix + "down_proj", c_.hidden_size, intermediate, w.down_proj);
  }

  void moe(const std::string& prefix, MoeWeights& w) {
    add(prefix + "gate.weight", {c_.n_routed_experts, c_.hidden_size}, Role::kRouter,
        w.gate.weight);
    if (c_.has_expert_bias())
      add(prefix + "gate.e_score_correction_bias", {c_.n_routed_experts}, Role::kExpertBias,
          w.e_score_correction_bias);
    for (size_t e = 0; e < w.experts.size(); ++e)
      mlp(prefix + "experts." + std::to_string(e) + ".", c_.moe_intermediate_size, w.experts[e]);
    mlp(prefix + "shared_experts.", c_.moe_intermediate_size * c_.n_shared_experts,
        w.shared_experts);
  }

  void layer(const std::string& prefix, LayerWeights& w) {
    norm(prefix + "input_layernorm.weight", c_.hidden_size, w.input_layernorm);
    attention(prefix + "self_attn.", w.self_attn);
    norm(prefix + "post_attention_layernorm.weight", c_.hidden_size, w.post_attention_layernorm);
    if (w.mlp) mlp(prefix + "mlp.", c_.intermediate_size, *w.mlp);
    if (w.moe) moe(prefix + "mlp.", *w.moe);
  }

  void mtp(const std::string& prefix, MtpWeights& w) {
    norm(prefix + "enorm.weight", c_.hidden_size, w.enorm);
    norm(prefix + "hnorm.weight", c_.hidden_size, w.hnorm);
    matrix(prefix + "eh_proj", c_.hidden_size, 2 * c_.hidden_size, w.eh_proj);
    layer(prefix, w.layer);
    norm(prefix + "shared_head.norm.weight", c_.hidden_size, w.shared_head_norm);
  }

 private:
  void add(const std::string& name, Shape shape, Role role, torch::Tensor& tensor) {
    slots_.push_back({name, std::move(shape), role, false, &tensor, nullptr});
  }

  const Config& c_;
  std::vector<TensorSlot>& slots_;
};

std::string layer_prefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

LayerWeights empty_layer(const Config& config, bool is_moe) {
  LayerWeights layer;
  if (is_moe) {
    layer.moe.emplace();
    layer.moe->experts.resize(config.n_routed_experts);
  } else {
    layer.mlp.emplace();
  }
  return layer;
}

}  // namespace

bool is_indexer(const TensorSlot& slot) { return slot.name.find(".indexer.") != std::string::npos; }

bool is_mtp(const TensorSlot& slot, const Config& config) {
  return slot.name.starts_with(layer_prefix(config.num_hidden_layers));
}

Weights empty_weights(const Config& config) {
  Weights weights;
  for (int64_t i = 0; i < config.num_hidden_layers; ++i)
    weights.layers.push_back(empty_layer(config, config.is_moe_layer(i)));
  if (config.num_nextn_predict_layers > 0) weights.mtp.emplace().layer = empty_layer(config, true);
  return weights;
}

std::vector<TensorSlot> tensor_slots(Weights& weights, const Config& config) {
  std::vector<TensorSlot> slots;
  SlotWriter writer(config, slots);
  writer.embedding("model.embed_tokens.weight", weights.embed_tokens);
  for (size_t i = 0; i < weights.layers.size(); ++i)
    writer.layer(layer_prefix(i), weights.layers[i]);
  writer.norm("model.norm.weight", config.hidden_size, weights.norm);
  writer.head(weights.lm_head);
  if (weights.mtp) writer.mtp(layer_prefix(weights.layers.size()), *weights.mtp);
  return slots;
}

}  // namespace fathom::model
