// The language-model loss with multi-token prediction, report of V3 eq. (21) to (25).
#pragma once

#include "model/transformer.h"

namespace fathom::model {

struct TrainingBatch {
  torch::Tensor tokens_N;                // i64
  torch::Tensor targets_N;               // i64: the next token; -1 where there is none to predict
  std::vector<int64_t> segment_lengths;  // documents (or rows) that must not see each other; sum N
  // The sequences of Balance::kSequence; sum N. Where ranks share the batch, what this rank has of
  // each of its sequences, 0 of those that others have.
  std::vector<int64_t> sequence_lengths = {};
  // Where each segment's first token stands within its document; empty: at its beginning. Only
  // where ranks share documents: forward.distribution->sequence.
  std::vector<int64_t> segment_positions = {};
  // i64: the token after the target, -1 where there is none. Undefined: as targets_N says.
  torch::Tensor after_next_N = {};
};

// For each token the one after its target, -1 at the end of a segment or where it is not known.
torch::Tensor targets_after_next(const TrainingBatch& batch);

// A call's part of a batch that ranks share: of its targets, MTP's targets and tokens. Its losses
// are means over its own, multiplied by the part, so that the ranks' sum is the batch's mean.
struct LossShare {
  double main = 1, mtp = 1, tokens = 1;
};

// What the balance loss is taken over: the whole batch, or each row of it alone (the report's).
enum class Balance { kBatch, kSequence };

struct LossOptions {
  double mtp_weight = 0.3;    // 0 skips the MTP layer
  double balance_weight = 0;  // alpha of eq. (17), of the mean over the MoE layers
  Balance balance = Balance::kBatch;
  double indexer_weight = 1;  // of the indexers' losses, where forward.indexer_loss is set
  // False: the indexers' losses alone, the report's dense warm-up; head and cross-entropies are not
  // computed.
  bool language_model = true;
  LossShare share = {};
  ForwardOptions forward{.form = AttentionForm::kMha, .sparse = false, .bf16_matmuls = true};
};

struct Losses {
  // main + mtp_weight * mtp (or mtp_divergence in their place) + balance_weight * balance +
  // indexer_weight * sum of the indexers' losses; call backward() on it. Undefined if it has no
  // part.
  torch::Tensor total;
  double main = 0;  // mean cross-entropy in nats over targets >= 0
  double mtp = 0;   // the same for the token after the next
  // Of mtp_divergence_loss alone, which has neither of these two: model/draft_divergence.h.
  double mtp_divergence = 0, mtp_overlap = 0;
  std::vector<double> indexer;               // per layer (MTP's last), nats a token
  std::vector<double> indexer_recall;        // per layer; 0 where attention is not dense
  std::vector<double> attention_entropy;     // per layer, where forward.attention_entropy is set
  std::vector<torch::Tensor> expert_counts;  // per MoE layer (MTP's last), [E] i64
};

// The logits are never stored whole: the head and the cross-entropy run over blocks of rows.
Losses language_model_loss(const Model& model, const TrainingBatch& batch,
                           const LossOptions& options);

// The MTP layer against the model: the divergence of its guesses from what the model itself
// predicts one token later, over the same tokens as MTP's cross-entropy above. Balance, expert
// counts and the indexer's loss are the MTP layer's alone. Gradients reach that layer and, where it
// is not frozen, the embedding; the main model's forward pass records none. CHECKs that no row is
// shared by ranks.
Losses mtp_divergence_loss(const Model& model, const TrainingBatch& batch,
                           const LossOptions& options);

}  // namespace fathom::model
