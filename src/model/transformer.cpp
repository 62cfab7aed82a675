#include "model/transformer.h"

#include "base/random.h"
#include "model/attention.h"
#include "model/moe.h"
#include "model/ops.h"

namespace fathom::model {
namespace {

using torch::Tensor;

RopeTable rope_of(const Config& config, std::span<const Segment> segments) {
  std::vector<int64_t> positions;
  for (const Segment& segment : segments) {
    for (int64_t i = 0; i < segment.num_tokens; ++i) positions.push_back(segment.position + i);
  }
  return rope_table(config, positions);
}

Tensor embed(const Model& model, const Tensor& tokens_N) {
  const Tensor& table = model.weights.embed_tokens;
  if (table.scalar_type() == torch::kFloat32) return torch::embedding(table, tokens_N);
  const auto rows = ops::weight_view({table, {}});
  const Tensor tokens = tokens_N.contiguous();
  const int64_t* const ids = tokens.data_ptr<int64_t>();
  Tensor out = torch::empty({tokens.size(0), rows.cols});
  for (int64_t n = 0; n < out.size(0); ++n) {
    CHECK(0 <= ids[n] && ids[n] < rows.rows, "token {} of {}", ids[n], rows.rows);
    kernels::widen_rows(rows, ids[n], ids[n] + 1, out.data_ptr<float>() + n * rows.cols);
  }
  return out;
}

struct LayerCall {
  const Config& config;
  int64_t layer;
  std::span<const Segment> segments;
  const RopeTable& rope;
  const ForwardOptions& options;
  LayerTrace* trace;
  ForwardStatistics* statistics;
};

Tensor feed_forward(const LayerWeights& weights, const LayerCall& call, const Tensor& x_ND) {
  if (weights.mlp) return mlp(*weights.mlp, x_ND, call.options);
  const Routing routing = route(*weights.moe, call.config, x_ND, call.options);
  if (call.trace) {
    call.trace->gate_index_NK = routing.expert_index_NK;
    call.trace->gate_weight_NK = routing.expert_weight_NK;
  }
  if (call.statistics) {
    call.statistics->counts_E.push_back(routing.counts_E);
    call.statistics->index_NK.push_back(routing.expert_index_NK);
    call.statistics->balance.push_back(routing.balance);
  }
  return moe(*weights.moe, x_ND, routing, call.options);
}

// x + residual, in x's place where no gradient is recorded.
Tensor add_residual(Tensor x, const Tensor& residual) {
  return torch::GradMode::is_enabled() ? residual + x : x.add_(residual);
}

Tensor run_layer(const LayerWeights& weights, const LayerCall& call, const Tensor& hidden_ND) {
  const double eps = call.config.rms_norm_eps;
  const AttentionInput attention{weights.self_attn, call.config,  call.layer, call.segments,
                                 call.rope,         call.options, call.trace, call.statistics};
  const Tensor after_attention = add_residual(
      mla_attention(attention, ops::rms_norm(hidden_ND, weights.input_layernorm, eps)), hidden_ND);
  const Tensor normed = ops::rms_norm(after_attention, weights.post_attention_layernorm, eps);
  const Tensor out = add_residual(feed_forward(weights, call, normed), after_attention);
  if (call.trace) call.trace->hidden_ND = out;
  return out;
}

void prepare(LayerTrace& trace, const Config& config, std::span<const Segment> segments) {
  int64_t tokens = 0, longest = 0;
  for (const Segment& segment : segments) {
    tokens += segment.num_tokens;
    longest = std::max(longest, segment.position + segment.num_tokens);
  }
  trace.topk_NK = torch::full({tokens, std::min(config.index_topk, longest)}, -1, torch::kInt);
}

void advance_caches(std::span<const Segment> segments) {
  for (const Segment& segment : segments)
    if (segment.cache) segment.cache->advance(segment.num_tokens);
}

}  // namespace

ForwardOptions serving_options(const Model& model) {
  const LayerWeights& layer = model.weights.layers.front();
  const bool is_fp8 = layer.self_attn.kv_a_proj_with_mqa.weight.scalar_type() == torch::kByte;
  return {.mode = is_fp8 ? NumericMode::kDeploy : NumericMode::kPlain, .bf16_matmuls = true};
}

Tensor forward(const Model& model, const Tensor& tokens_N, std::span<const Segment> segments,
               const ForwardOptions& options, Trace* trace, ForwardStatistics* statistics) {
  for (const Segment& segment : segments)
    if (segment.cache) CHECK_EQ(segment.position, segment.cache->num_tokens());
  const RopeTable rope = rope_of(model.config, segments);
  CHECK_EQ(tokens_N.size(0), rope.cos_NR2.size(0));
  Tensor hidden = embed(model, tokens_N);
  if (trace) trace->layers.assign(model.weights.layers.size(), {});
  for (size_t i = 0; i < model.weights.layers.size(); ++i) {
    LayerTrace* layer_trace = trace ? &trace->layers[i] : nullptr;
    if (layer_trace) prepare(*layer_trace, model.config, segments);
    const LayerCall call{
        model.config, static_cast<int64_t>(i), segments, rope, options, layer_trace, statistics};
    hidden = run_layer(model.weights.layers[i], call, hidden);
  }
  advance_caches(segments);
  return ops::rms_norm(hidden, model.weights.norm, model.config.rms_norm_eps);
}

Tensor logits(const Model& model, const Tensor& hidden_ND, const ForwardOptions& options) {
  return ops::linear(hidden_ND, model.weights.lm_head, {options.bf16_matmuls, false});
}

Tensor forward_layer(const Model& model, int64_t layer, const Tensor& hidden_ND,
                     std::span<const Segment> segments, const ForwardOptions& options,
                     LayerTrace* trace) {
  const RopeTable rope = rope_of(model.config, segments);
  if (trace) prepare(*trace, model.config, segments);
  return run_layer(model.weights.layers.at(layer),
                   {model.config, layer, segments, rope, options, trace, nullptr}, hidden_ND);
}

Tensor forward_mtp(const Model& model, const Tensor& hidden_ND, const Tensor& next_tokens_N,
                   std::span<const Segment> segments, const ForwardOptions& options,
                   ForwardStatistics* statistics) {
  CHECK(model.weights.mtp.has_value(), "the model has no MTP layer");
  const MtpWeights& mtp = *model.weights.mtp;
  const double eps = model.config.rms_norm_eps;
  const RopeTable rope = rope_of(model.config, segments);
  const Tensor embedded = ops::rms_norm(embed(model, next_tokens_N), mtp.enorm, eps);
  const Tensor previous = ops::rms_norm(hidden_ND, mtp.hnorm, eps);
  const Tensor joined = ops::linear(torch::cat({embedded, previous}, 1), mtp.eh_proj,
                                    {options.bf16_matmuls, options.mode == NumericMode::kDeploy});
  const LayerCall call{
      model.config, model.config.num_hidden_layers, segments, rope, options, nullptr, statistics};
  return ops::rms_norm(run_layer(mtp.layer, call, joined), mtp.shared_head_norm, eps);
}

torch::Tensor initial_value(const TensorSlot& slot, const Config& config, uint64_t seed,
                            uint64_t stream) {
  if (slot.role == Role::kNorm) return torch::ones(slot.shape);
  if (slot.role == Role::kBias || slot.role == Role::kExpertBias) return torch::zeros(slot.shape);
  Tensor tensor = torch::empty(slot.shape);
  base::Random random(seed, stream);
  float* data = tensor.data_ptr<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i)
    data[i] = static_cast<float>(random.normal() * config.initializer_range);
  return tensor;
}

Model initialise(const Config& config, uint64_t seed) {
  Model model{config, empty_weights(config)};
  uint64_t stream = 0;
  for (const TensorSlot& slot : tensor_slots(model.weights, config)) {
    // The expert bias is moved by the load balancing, not by gradients.
    *slot.tensor = initial_value(slot, config, seed, stream++)
                       .set_requires_grad(slot.role != Role::kExpertBias);
  }
  return model;
}

}  // namespace fathom::model
