// The language-model loss with multi-token prediction, report of V3 eq. (21) to (25).
#pragma once

#include "model/transformer.h"

namespace fathom::model {

struct TrainingBatch {
  torch::Tensor tokens_N;                // i64
  torch::Tensor targets_N;               // i64: the next token; -1 where there is none to predict
  std::vector<int64_t> segment_lengths;  // documents (or rows) that must not see each other; sum N
};

struct LossOptions {
  double mtp_weight = 0.3;    // 0 skips the MTP layer
  double balance_weight = 0;  // of the mean of ExpertStatistics::balance
  ForwardOptions forward{.form = AttentionForm::kMha, .sparse = false, .bf16_matmuls = true};
};

struct Losses {
  torch::Tensor total;                       // main + mtp_weight * mtp; call backward() on it
  double main = 0;                           // mean cross-entropy in nats over targets >= 0
  double mtp = 0;                            // the same for the token after the next
  std::vector<torch::Tensor> expert_counts;  // per MoE layer (MTP's last), [E] i64
};

// The logits are never stored whole: the head and the cross-entropy run over blocks of rows.
Losses language_model_loss(const Model& model, const TrainingBatch& batch,
                           const LossOptions& options);

}  // namespace fathom::model
