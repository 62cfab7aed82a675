// The language-model loss with multi-token prediction, report of V3 eq. (21) to (25).
#pragma once

#include "model/transformer.h"

namespace fathom::model {

struct TrainingBatch {
  torch::Tensor tokens_N;                // i64
  torch::Tensor targets_N;               // i64: the next token; -1 where there is none to predict
  std::vector<int64_t> segment_lengths;  // documents (or rows) that must not see each other; sum N
  std::vector<int64_t> sequence_lengths = {};  // the sequences of Balance::kSequence; sum N
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
  ForwardOptions forward{.form = AttentionForm::kMha, .sparse = false, .bf16_matmuls = true};
};

struct Losses {
  // main + mtp_weight * mtp + balance_weight * balance + indexer_weight * sum of the indexers'
  // losses; call backward() on it. Undefined if it has no part.
  torch::Tensor total;
  double main = 0;                           // mean cross-entropy in nats over targets >= 0
  double mtp = 0;                            // the same for the token after the next
  std::vector<double> indexer;               // per layer (MTP's last), nats a token
  std::vector<double> indexer_recall;        // per layer; 0 where attention is not dense
  std::vector<double> attention_entropy;     // per layer, where forward.attention_entropy is set
  std::vector<torch::Tensor> expert_counts;  // per MoE layer (MTP's last), [E] i64
};

// The logits are never stored whole: the head and the cross-entropy run over blocks of rows.
Losses language_model_loss(const Model& model, const TrainingBatch& batch,
                           const LossOptions& options);

}  // namespace fathom::model
