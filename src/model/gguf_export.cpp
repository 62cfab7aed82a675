#include "model/gguf_export.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>

#include "base/file.h"
#include "model/checkpoint.h"
#include "model/gguf.h"
#include "model/ops.h"
#include "text/byte_level.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_file.h"

namespace fathom::model {
namespace {

using torch::Tensor;

struct MatrixType {
  GgufType gguf;
  torch::Dtype torch;
  uint32_t file_type;  // llama.cpp's name for a file that is mostly of this type
};

MatrixType matrix_type(const std::string& name) {
  if (name == "f32") return {GgufType::kF32, torch::kFloat32, 0};
  if (name == "f16") return {GgufType::kF16, torch::kHalf, 1};
  if (name == "bf16") return {GgufType::kBF16, torch::kBFloat16, 32};
  fail("--type {}: expected f32, f16 or bf16", name);
}

void emit(const std::string& name, const Tensor& wide, torch::Dtype dtype,
          const GgufTensor::Sink& sink) {
  const Tensor bytes = wide.to(dtype).contiguous();
  if (!torch::isfinite(bytes).all().item<bool>())
    fail("{}: a value is {}", name,
         torch::isfinite(wide).all().item<bool>()
             ? "too large for f16; write --type bf16 or f32"
             : "not finite; the weights are damaged, get them again");
  sink(bytes.data_ptr(), bytes.numel() * bytes.element_size());
}

// Kernels read e4m3's NaN as a number.
void check_codes(const std::string& name, const Tensor& weight) {
  if (weight.scalar_type() == torch::kByte && ((weight & 0x7f) == 0x7f).any().item<bool>())
    fail("{}: a value is not finite; the weights are damaged, get them again", name);
}

Tensor widened(const Linear& linear, int64_t begin, int64_t end) {
  const auto view = ops::weight_view(linear);
  Tensor wide = torch::empty({end - begin, view.cols});
  kernels::widen_rows(view, begin, end, wide.data_ptr<float>());
  return wide;
}

void emit_rows(const std::string& name, const Linear& linear, torch::Dtype dtype,
               const GgufTensor::Sink& sink) {
  constexpr int64_t kRowsAtOnce = 1024;
  check_codes(name, linear.weight);
  const int64_t rows = linear.weight.size(0);
  for (int64_t at = 0; at < rows; at += kRowsAtOnce)
    emit(name, widened(linear, at, std::min(rows, at + kRowsAtOnce)), dtype, sink);
}

// The file's tensors, one part of the model after another.
class TensorList {
 public:
  TensorList(const Config& config, MatrixType type) : c_(config), type_(type) {}

  std::vector<GgufTensor> take() { return std::move(tensors_); }

  void vector(const std::string& name, const Tensor& values) {
    add(name, {values.numel()}, GgufType::kF32,
        [=](const auto& sink) { emit(name, values, torch::kFloat32, sink); });
  }
  // Readers compute the choice of experts and the indexer's head weights in f32.
  void router(const std::string& name, const Linear& linear) {
    add(name, linear.weight.sizes().vec(), GgufType::kF32,
        [=](const auto& sink) { emit_rows(name, linear, torch::kFloat32, sink); });
  }
  void matrix(const std::string& name, const Linear& linear) {
    add(name, linear.weight.sizes().vec(), type_.gguf,
        [=, this](const auto& sink) { emit_rows(name, linear, type_.torch, sink); });
  }
  void layer(int64_t index, const LayerWeights& w) {
    const std::string blk = fmt::format("blk.{}.", index);
    vector(blk + "attn_norm.weight", w.input_layernorm);
    attention(blk, w.self_attn);
    vector(blk + "ffn_norm.weight", w.post_attention_layernorm);
    if (w.mlp) mlp(blk, "", *w.mlp);
    if (w.moe) moe(blk, *w.moe);
  }
  void mtp(int64_t index, const MtpWeights& w) {
    layer(index, w.layer);
    const std::string nextn = fmt::format("blk.{}.nextn.", index);
    matrix(nextn + "eh_proj.weight", w.eh_proj);
    vector(nextn + "enorm.weight", w.enorm);
    vector(nextn + "hnorm.weight", w.hnorm);
    vector(nextn + "shared_head_norm.weight", w.shared_head_norm);
  }

 private:
  void add(std::string name, std::vector<int64_t> shape, GgufType type,
           std::function<void(const GgufTensor::Sink&)> write) {
    tensors_.push_back({std::move(name), std::move(shape), type, std::move(write)});
  }

  void attention(const std::string& blk, const AttentionWeights& w) {
    matrix(blk + "attn_q_a.weight", w.q_a_proj);
    vector(blk + "attn_q_a_norm.weight", w.q_a_layernorm);
    matrix(blk + "attn_q_b.weight", w.q_b_proj);
    matrix(blk + "attn_kv_a_mqa.weight", w.kv_a_proj_with_mqa);
    vector(blk + "attn_kv_a_norm.weight", w.kv_a_layernorm);
    kv_b(blk, w.kv_b_proj);
    matrix(blk + "attn_output.weight", w.o_proj);
    matrix(blk + "indexer.attn_q_b.weight", w.indexer.wq_b);
    matrix(blk + "indexer.attn_k.weight", w.indexer.wk);
    vector(blk + "indexer.k_norm.weight", w.indexer.k_norm_weight);
    vector(blk + "indexer.k_norm.bias", w.indexer.k_norm_bias);
    router(blk + "indexer.proj.weight", w.indexer.weights_proj);
  }

  // [heads * (nope + v), latent] becomes keys [heads, latent, nope] and values [heads, v, latent]:
  // what the absorbed form multiplies with.
  void kv_b(const std::string& blk, const Linear& kv_b_proj) {
    const int64_t heads = c_.num_attention_heads, nope = c_.qk_nope_head_dim, v = c_.v_head_dim;
    const auto halves = [=, latent = c_.kv_lora_rank] {
      return widened(kv_b_proj, 0, kv_b_proj.weight.size(0)).view({heads, nope + v, latent});
    };
    const std::string keys = blk + "attn_k_b.weight", values = blk + "attn_v_b.weight";
    add(keys, {heads, c_.kv_lora_rank, nope}, type_.gguf, [=, this](const auto& sink) {
      check_codes(keys, kv_b_proj.weight);
      emit(keys, halves().narrow(1, 0, nope).transpose(1, 2), type_.torch, sink);
    });
    add(values, {heads, v, c_.kv_lora_rank}, type_.gguf, [=, this](const auto& sink) {
      emit(values, halves().narrow(1, nope, v), type_.torch, sink);
    });
  }

  void mlp(const std::string& blk, const std::string& suffix, const MlpWeights& w) {
    matrix(blk + "ffn_gate" + suffix + ".weight", w.gate_proj);
    matrix(blk + "ffn_up" + suffix + ".weight", w.up_proj);
    matrix(blk + "ffn_down" + suffix + ".weight", w.down_proj);
  }

  void moe(const std::string& blk, const MoeWeights& w) {
    router(blk + "ffn_gate_inp.weight", w.gate);
    vector(blk + "exp_probs_b.bias", w.e_score_correction_bias);
    experts(blk + "ffn_gate_exps.weight", w, &MlpWeights::gate_proj);
    experts(blk + "ffn_up_exps.weight", w, &MlpWeights::up_proj);
    experts(blk + "ffn_down_exps.weight", w, &MlpWeights::down_proj);
    if (c_.n_shared_experts > 0) mlp(blk, "_shexp", w.shared_experts);
  }

  void experts(const std::string& name, const MoeWeights& w, Linear MlpWeights::*part) {
    const auto shape = (w.experts[0].*part).weight.sizes();
    add(name, {c_.n_routed_experts, shape[0], shape[1]}, type_.gguf,
        [&w, name, part, this](const auto& sink) {
          for (const MlpWeights& expert : w.experts)
            emit_rows(name, expert.*part, type_.torch, sink);
        });
  }

  const Config& c_;
  MatrixType type_;
  std::vector<GgufTensor> tensors_;
};

uint32_t u32(int64_t value) { return static_cast<uint32_t>(value); }

// MLA in its absorbed form is attention with one key-value head: the latent and the rotary key.
std::vector<GgufField> shape_fields(const Config& c) {
  const std::string arch = "deepseek32.";
  std::vector<GgufField> fields = {
      {arch + "block_count", u32(c.num_hidden_layers + c.num_nextn_predict_layers)},
      {arch + "nextn_predict_layers", u32(c.num_nextn_predict_layers)},
      {arch + "context_length", u32(c.max_position_embeddings)},
      {arch + "embedding_length", u32(c.hidden_size)},
      {arch + "feed_forward_length", u32(c.intermediate_size)},
      {arch + "vocab_size", u32(c.vocab_size)},
      {arch + "attention.head_count", u32(c.num_attention_heads)},
      {arch + "attention.head_count_kv", uint32_t{1}},
      {arch + "attention.layer_norm_rms_epsilon", static_cast<float>(c.rms_norm_eps)},
      {arch + "attention.q_lora_rank", u32(c.q_lora_rank)},
      {arch + "attention.kv_lora_rank", u32(c.kv_lora_rank)},
      {arch + "attention.key_length", u32(c.kv_lora_rank + c.qk_rope_head_dim)},
      {arch + "attention.value_length", u32(c.kv_lora_rank)},
      {arch + "attention.key_length_mla", u32(c.qk_head_dim())},
      {arch + "attention.value_length_mla", u32(c.v_head_dim)},
      {arch + "attention.indexer.head_count", u32(c.index_n_heads)},
      {arch + "attention.indexer.key_length", u32(c.index_head_dim)},
      {arch + "attention.indexer.top_k", u32(c.index_topk)},
      {arch + "leading_dense_block_count", u32(c.first_k_dense_replace)},
      {arch + "expert_feed_forward_length", u32(c.moe_intermediate_size)},
      {arch + "expert_count", u32(c.n_routed_experts)},
      {arch + "expert_used_count", u32(c.num_experts_per_tok)},
      {arch + "expert_shared_count", u32(c.n_shared_experts)},
      {arch + "expert_group_count", u32(c.n_group)},
      {arch + "expert_group_used_count", u32(c.topk_group)},
      {arch + "expert_weights_scale", static_cast<float>(c.routed_scaling_factor)},
      {arch + "expert_weights_norm", c.norm_topk_prob},
      {arch + "expert_gating_func", uint32_t{2}},  // sigmoid
      {arch + "rope.dimension_count", u32(c.qk_rope_head_dim)},
      {arch + "rope.freq_base", static_cast<float>(c.rope_theta)},
  };
  if (!c.rope_scaling) return fields;
  const RopeScaling& yarn = *c.rope_scaling;
  const std::string scaling = arch + "rope.scaling.";
  fields.push_back({scaling + "type", std::string("yarn")});
  fields.push_back({scaling + "factor", static_cast<float>(yarn.factor)});
  fields.push_back(
      {scaling + "original_context_length", u32(yarn.original_max_position_embeddings)});
  fields.push_back({scaling + "yarn_beta_fast", static_cast<float>(yarn.beta_fast)});
  fields.push_back({scaling + "yarn_beta_slow", static_cast<float>(yarn.beta_slow)});
  // The format keeps mscale_all_dim times the 0.1 of YaRN's formula.
  fields.push_back(
      {scaling + "yarn_log_multiplier", static_cast<float>(0.1 * yarn.mscale_all_dim)});
  return fields;
}

enum TokenType : int32_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

std::vector<GgufField> tokenizer_fields(const Config& config, const std::filesystem::path& file) {
  const text::TokenizerParts parts =
      text::read_tokenizer_parts(base::read_file(file), file.string());
  if (parts.splits != text::kDeepSeekSplits)
    fail(
        "{}: pre_tokenizer: expected the splits of DeepSeek-V3, which is what a GGUF file can name",
        file.string());
  std::vector<std::string> tokens(config.vocab_size), merges;
  std::vector<int32_t> types(config.vocab_size, kUnused);
  const auto check_id = [&](int64_t id) {
    if (id >= config.vocab_size)
      fail("{}: token {} lies beyond the model's vocab_size {}", file.string(), id,
           config.vocab_size);
  };
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = fmt::format("[PAD{}]", i);
  for (size_t i = 0; i < parts.tokens.size(); ++i) {
    if (parts.tokens[i].empty()) continue;
    check_id(static_cast<int64_t>(i));
    tokens[i] = text::to_byte_level(parts.tokens[i]);
    types[i] = kNormal;
  }
  for (const text::AddedToken& token : parts.added_tokens) {
    check_id(token.id);
    tokens[token.id] = token.content;
    types[token.id] = token.is_special ? kControl : kUserDefined;
  }
  for (const text::BpeMerge& merge : parts.merges)
    merges.push_back(tokens[merge.left] + " " + tokens[merge.right]);
  return {{"tokenizer.ggml.model", std::string("gpt2")},
          {"tokenizer.ggml.pre", std::string("deepseek-v3")},
          {"tokenizer.ggml.tokens", std::move(tokens)},
          {"tokenizer.ggml.token_type", std::move(types)},
          {"tokenizer.ggml.merges", std::move(merges)},
          {"tokenizer.ggml.bos_token_id", u32(config.bos_token_id)},
          {"tokenizer.ggml.eos_token_id", u32(config.eos_token_id)},
          {"tokenizer.ggml.add_bos_token", true}};
}

void refuse_what_gguf_cannot_say(const Config& config, const std::filesystem::path& model) {
  if (config.indexer_rope_interleave)
    fail(
        "{}: indexer_rope_interleave is true; llama.cpp's deepseek32 knows only the half-split "
        "RoPE of V3.2",
        (model / "config.json").string());
  if (config.q_lora_rank == 0)
    fail("{}: q_lora_rank is null; llama.cpp's deepseek32 knows only queries from a latent",
         (model / "config.json").string());
  if (config.scoring_func != ScoringFunc::kSigmoid || config.topk_method != TopkMethod::kNoauxTc)
    fail(
        "{}: scoring_func and topk_method are not \"sigmoid\" and \"noaux_tc\"; llama.cpp's "
        "deepseek32 knows only the gates of V3.2",
        (model / "config.json").string());
}

}  // namespace

void export_gguf(const GgufExportOptions& options) {
  const torch::NoGradGuard no_grad;
  const MatrixType type = matrix_type(options.type);
  const Model model = load_checkpoint(options.model);
  check_is_no_part_of(options.out, options.model);
  refuse_what_gguf_cannot_say(model.config, options.model);

  std::vector<GgufField> fields = {{"general.architecture", std::string("deepseek32")},
                                   {"general.type", std::string("model")},
                                   {"general.name", options.model.filename().string()},
                                   {"general.file_type", type.file_type}};
  for (GgufField& field : shape_fields(model.config)) fields.push_back(std::move(field));
  for (GgufField& field : tokenizer_fields(model.config, options.model / "tokenizer.json"))
    fields.push_back(std::move(field));

  const Weights& w = model.weights;
  TensorList list(model.config, type);
  list.matrix("token_embd.weight", {w.embed_tokens, {}});
  for (size_t i = 0; i < w.layers.size(); ++i) list.layer(static_cast<int64_t>(i), w.layers[i]);
  list.vector("output_norm.weight", w.norm);
  list.matrix("output.weight", w.lm_head);
  if (w.mtp) list.mtp(static_cast<int64_t>(w.layers.size()), *w.mtp);
  write_gguf(options.out, fields, list.take());
}

}  // namespace fathom::model
