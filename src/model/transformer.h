// The DeepSeek-V3.2 transformer: one definition for training and serving.
//
// Tokens of several sequences lie one behind another ([N] tokens in all); `segments` says where
// each begins and which cache it continues. Everything but attention works on single tokens. With a
// cache, a segment's new tokens attend to what the cache holds and to themselves; without, to
// themselves.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "model/kv_cache.h"
#include "model/model.h"
#include "model/tensor.h"
#include "model/weights.h"

namespace fathom::model {

struct Distribution;  // model/distribution.h

struct Model {
  Config config;
  Weights weights;
};

// plain:  no activation is quantised anywhere; what training computes.
// deploy: as the published reference serves. FP8 linears quantise their input per 128 channels, the
//         indexer's q and k and the latent KV pass through FP8, all with power-of-two scales.
enum class NumericMode { kPlain, kDeploy };

// mha: keys and values are expanded per head; the index selection is a mask.
// mqa: queries are absorbed into the latent space and the selected rows are gathered.
// Equal up to rounding (deploy mode rounds mha's expansion through FP8 besides). Which is cheaper
// is model/attention_cost's to say; the engine, whose bits may not depend on it, uses mqa
// throughout.
enum class AttentionForm { kMha, kMqa };

// Which keys a query sees in training's sparse attention: those of the greatest index scores, or,
// as controls that the indexer is held against in experiments, the last ones, random ones (a
// function of seed, layer and position), or those that dense attention, summed over its heads,
// looks at most.
enum class KeyRule { kIndexer, kWindow, kRandom, kOracle };

struct Segment {
  int64_t num_tokens = 0;
  int64_t position = 0;  // of its first token; equals cache->num_tokens() if there is a cache
  KvCache* cache = nullptr;
};

struct ForwardOptions {
  NumericMode mode = NumericMode::kPlain;
  AttentionForm form = AttentionForm::kMqa;
  bool sparse = true;         // false: dense attention, the indexer selects nothing
  bool indexer_loss = false;  // without caches: collect ForwardStatistics::indexer_loss
  bool bf16_matmuls = false;  // round both operands of every matmul to bf16 (accumulate in f32)
  KeyRule key_rule = KeyRule::kIndexer;  // without caches
  uint64_t key_seed = 0;                 // of KeyRule::kRandom
  // The report's cuts between the indexer and the main model, section 2.1.1. Off, the indexer's
  // loss reaches the main model: only to see what they prevent.
  bool detach_indexer_input = true;
  bool detach_teacher = true;
  bool attention_entropy = false;  // without caches: collect ForwardStatistics::attention_entropy
  // Lengths of the sequences over each of which ForwardStatistics::balance is taken, their sum N;
  // empty: over the batch as one. Of a sequence that ranks share, the length of this one's part,
  // 0 where it has none. Must outlive the call.
  std::span<const int64_t> balance_sequences = {};
  const Distribution* distribution = nullptr;  // training: where ranks share the work
};

// What serving computes with: operands of matmuls in bf16 and, for FP8 weights, deploy mode.
ForwardOptions serving_options(const Model& model);

// What one layer did, for the golden cases and --dump-layers.
struct LayerTrace {
  torch::Tensor hidden_ND;        // residual stream after the layer
  torch::Tensor topk_NK;          // i32, ascending, -1 where there are fewer keys
  torch::Tensor index_scores_NS;  // f32, only where there is one segment; -inf for later keys
  torch::Tensor gate_index_NK;    // i64, undefined in dense layers
  torch::Tensor gate_weight_NK;
};

struct Trace {
  std::vector<LayerTrace> layers;
};

// What training watches and sampling records, MTP's layer last. Of the experts, per MoE layer:
struct ForwardStatistics {
  std::vector<torch::Tensor> counts_E;  // i64: tokens that each expert got
  std::vector<torch::Tensor> index_NK;  // i64: the experts of each token, ascending
  // Differentiable: sum_e f_e P_e of the report of V3, section 2.1.2, eq. (17) to (20), 1 when
  // balanced; the mean over options.balance_sequences, weighted by their tokens.
  std::vector<torch::Tensor> balance;
  // Of the indexers, per layer, where options.indexer_loss is set. See model/attention_ops.
  std::vector<torch::Tensor> indexer_loss;  // differentiable by the indexers' weights alone
  std::vector<double> indexer_recall;       // of the top index_topk, where attention is dense
  std::vector<double> attention_entropy;    // per layer, nats, mean over tokens and heads
};

// Hidden states after the final norm, [N, hidden_size] f32; logits are logits(model, hidden).
// tokens_N: i64. Differentiable with respect to the weights where they require gradients.
// `trace` and `statistics` (both optional) are filled.
torch::Tensor forward(const Model& model, const torch::Tensor& tokens_N,
                      std::span<const Segment> segments, const ForwardOptions& options,
                      Trace* trace = nullptr, ForwardStatistics* statistics = nullptr);

torch::Tensor logits(const Model& model, const torch::Tensor& hidden_ND,
                     const ForwardOptions& options);

// One layer alone: hidden_ND is the residual stream before it.
torch::Tensor forward_layer(const Model& model, int64_t layer, const torch::Tensor& hidden_ND,
                            std::span<const Segment> segments, const ForwardOptions& options,
                            LayerTrace* trace = nullptr);

// The MTP layer: from hidden_ND (after the final norm) and the tokens that follow, the hidden
// states (after shared_head.norm) that predict the tokens after those.
torch::Tensor forward_mtp(const Model& model, const torch::Tensor& hidden_ND,
                          const torch::Tensor& next_tokens_N, std::span<const Segment> segments,
                          const ForwardOptions& options, ForwardStatistics* statistics = nullptr);

// One tensor of a fresh model; its random numbers are a function of (seed, stream) alone.
torch::Tensor initial_value(const TensorSlot& slot, const Config& config, uint64_t seed,
                            uint64_t stream);

// A fresh model with f32 weights that require gradients: normal(0, initializer_range) matrices,
// ones for norms, zeros for biases. A function of (config, seed) alone.
Model initialise(const Config& config, uint64_t seed);

}  // namespace fathom::model
