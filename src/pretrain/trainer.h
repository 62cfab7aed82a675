// One model in training: a step, a validation, a checkpoint.
#pragma once

#include "model/loss.h"
#include "pretrain/division.h"
#include "pretrain/optimizer.h"
#include "pretrain/run_folder.h"
#include "pretrain/token_data.h"

namespace fathom::pretrain {

// What a stage computes: its attention and the parts of its loss, as they are at its beginning.
model::LossOptions loss_options(Stage stage, const TrainingRecipe& recipe);
// The same with what an experiment changes of it.
model::LossOptions loss_options(const Recipe& recipe);

// The warm-up trains nothing but the indexers, the mtp stage nothing but the MTP layer; all others
// whatever their losses reach.
void freeze(model::Model& model, Stage stage);

struct StepReport {
  double loss = 0;            // main cross-entropy, nats a token
  double mtp_loss = 0;        // the same for the token after the next
  double mtp_divergence = 0;  // stage mtp, which has neither of them: model/draft_divergence.h
  double mtp_overlap = 0;
  double indexer_loss = 0;    // mean over the layers trained, nats a token; from the warm-up on
  double indexer_recall = 0;  // of attention's mass by the top-k; dense attention only
  double gradient_norm = 0;   // before clipping, without the indexers
  double indexer_gradient_norm = 0;
  double learning_rate = 0;
  double seconds = 0;        // forward, backward and update
  bool is_skipped = false;   // by the recipe's skip_steps: nothing else is set
  double max_violation = 0;  // greatest expert load over the mean, minus 1 (MaxVio); mtp: its own

  double sum_of_losses() const { return loss + mtp_loss + mtp_divergence + indexer_loss; }
};

struct Validation {
  double loss = 0;                        // nats a token
  double mtp_divergence = 0;              // stage mtp: model/draft_divergence.h, nats a token
  double mtp_overlap = 0;                 // the same
  std::vector<double> indexer_loss;       // stages warmup and sparse
  std::vector<double> indexer_recall;     // of attention's mass by the top-k keys
  std::vector<double> attention_entropy;  // where the recipe's experiment asks for it
};

class Trainer {
 public:
  // A fresh model from the recipe's seed. Of several ranks, each makes a Trainer and calls the same
  // functions of it; all hold the whole model and get the same reports.
  explicit Trainer(const Recipe& recipe, const Ranks& ranks = {});
  // The weights of any checkpoint folder, under the recipe's config, which may differ from the
  // folder's in context, rotary scaling and top-k; an Error names what else differs.
  static Trainer begin_with(const Recipe& recipe, const std::filesystem::path& folder,
                            const Ranks& ranks = {});
  // Continues from a checkpoint of a RunFolder.
  static Trainer resume(const Recipe& recipe, const std::filesystem::path& checkpoint,
                        const Ranks& ranks = {});

  // Forward, backward and update on the batch of `step` (0-based).
  StepReport step(const TokenRows& rows, int64_t step, int64_t total_steps);
  // Mean over (at most max_rows of) the rows, without gradients. From the warm-up on the language
  // model's loss is that of sparse attention; the indexer's, in the stages warmup and sparse, are
  // held against dense attention, per layer. MTP is run in its own stage alone.
  Validation validate(const TokenRows& rows, int64_t max_rows = INT64_MAX) const;

  // The attention that validate() measures the language model with.
  model::ForwardOptions validation_options() const;

  const model::Model& model() const { return model_; }
  const Optimizer& optimizer() const { return optimizer_; }

 private:
  Trainer(const Recipe& recipe, model::Model model, const Ranks& ranks);
  // Gradients, figures and counts of a micro-batch, or this rank's part of it, of which the step
  // has so much; 0: of which it has nothing.
  void add_micro_batch(const model::TrainingBatch& batch, const model::LossOptions& options,
                       double weight, StepReport& report, std::vector<torch::Tensor>& counts) const;
  // Adds what a batch, or this rank's part of it, comes to; a factor of 0: nothing.
  struct ValidationSums;
  void add_validation(const model::TrainingBatch& whole, double factor, ValidationSums& sums) const;
  void balance_experts(const std::vector<torch::Tensor>& counts, double rate, StepReport& report);

  Recipe recipe_;
  Division division_;
  model::Model model_;
  Optimizer optimizer_;
};

}  // namespace fathom::pretrain
