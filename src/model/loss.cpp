#include "model/loss.h"

#include <torch/csrc/autograd/grad_mode.h>

#include "base/check.h"
#include "model/distribution.h"
#include "model/draft_divergence.h"
#include "model/ops.h"

namespace fathom::model {
using torch::Tensor;

Tensor targets_after_next(const TrainingBatch& batch) {
  Tensor result = torch::full_like(batch.targets_N, -1);
  const int64_t* next = batch.targets_N.data_ptr<int64_t>();
  int64_t* out = result.data_ptr<int64_t>();
  int64_t begin = 0;
  for (int64_t length : batch.segment_lengths) {
    for (int64_t i = begin; i + 1 < begin + length; ++i)
      if (next[i] >= 0) out[i] = next[i + 1];
    begin += length;
  }
  return result;
}

namespace {

Tensor after_next(const TrainingBatch& batch) {
  return batch.after_next_N.defined() ? batch.after_next_N : targets_after_next(batch);
}

void add_cross_entropies(const Model& model, const TrainingBatch& batch, const LossOptions& options,
                         const Tensor& hidden, const Tensor& predicted, Losses& losses) {
  const ops::LinearOptions linear{options.forward.bf16_matmuls, false};
  losses.total = options.share.main *
                 ops::linear_cross_entropy(hidden, model.weights.lm_head, batch.targets_N, linear);
  losses.main = losses.total.item<double>();
  if (!predicted.defined()) return;
  const Tensor mtp = options.share.mtp * ops::linear_cross_entropy(predicted, model.weights.lm_head,
                                                                   after_next(batch), linear);
  losses.mtp = mtp.item<double>();
  losses.total = losses.total + options.mtp_weight * mtp;
}

std::vector<Segment> segments_of(const TrainingBatch& batch) {
  std::vector<Segment> segments;
  for (size_t i = 0; i < batch.segment_lengths.size(); ++i)
    segments.push_back({batch.segment_lengths[i],
                        batch.segment_positions.empty() ? 0 : batch.segment_positions[i], nullptr});
  return segments;
}

ForwardOptions forward_options(const TrainingBatch& batch, const LossOptions& options) {
  ForwardOptions how = options.forward;
  if (options.balance == Balance::kSequence) how.balance_sequences = batch.sequence_lengths;
  return how;
}

// What the layers' statistics say, and the losses among them.
void add_statistics(const ForwardStatistics& statistics, const LossOptions& options,
                    Losses& losses) {
  const bool trains = torch::GradMode::is_enabled();
  if (options.language_model && options.balance_weight > 0 && trains && !statistics.balance.empty())
    losses.total = losses.total + options.balance_weight * options.share.tokens *
                                      torch::stack(statistics.balance).mean();
  for (const Tensor& loss : statistics.indexer_loss)
    losses.indexer.push_back(options.share.tokens * loss.item<double>());
  if (!statistics.indexer_loss.empty()) {
    const Tensor indexers =
        options.indexer_weight * options.share.tokens * torch::stack(statistics.indexer_loss).sum();
    losses.total = losses.total.defined() ? losses.total + indexers : indexers;
  }
  for (double recall : statistics.indexer_recall)
    losses.indexer_recall.push_back(options.share.tokens * recall);
  losses.attention_entropy = statistics.attention_entropy;
  losses.expert_counts = statistics.counts_E;
}

}  // namespace

Losses language_model_loss(const Model& model, const TrainingBatch& batch,
                           const LossOptions& options) {
  const std::vector<Segment> segments = segments_of(batch);
  const ForwardOptions how = forward_options(batch, options);
  Losses losses;
  ForwardStatistics statistics;
  const Tensor hidden = forward(model, batch.tokens_N, segments, how, nullptr, &statistics);
  Tensor predicted;
  if (options.mtp_weight > 0 && model.weights.mtp)
    predicted =
        forward_mtp(model, hidden, batch.targets_N.clamp_min(0), segments, how, &statistics);
  if (options.language_model) add_cross_entropies(model, batch, options, hidden, predicted, losses);
  add_statistics(statistics, options, losses);
  return losses;
}

namespace {

Tensor forward_without_gradients(const Model& model, const TrainingBatch& batch,
                                 std::span<const Segment> segments, ForwardOptions how) {
  const torch::NoGradGuard no_grad;
  how.indexer_loss = how.attention_entropy = false;
  return forward(model, batch.tokens_N, segments, how);
}

}  // namespace

Losses mtp_divergence_loss(const Model& model, const TrainingBatch& batch,
                           const LossOptions& options) {
  const ForwardOptions how = forward_options(batch, options);
  CHECK(!how.distribution || how.distribution->sequence.size() == 1,
        "ranks that share a row do not see each other's hidden states");
  const std::vector<Segment> segments = segments_of(batch);
  const Tensor hidden = forward_without_gradients(model, batch, segments, how);
  ForwardStatistics statistics;
  const Tensor predicted =
      forward_mtp(model, hidden, batch.targets_N.clamp_min(0), segments, how, &statistics);
  const Tensor rows = (after_next(batch) >= 0).nonzero().squeeze(1);
  const DraftDivergence divergence =
      draft_divergence(predicted.index_select(0, rows), hidden.index_select(0, rows + 1),
                       model.weights.lm_head, {how.bf16_matmuls, false});
  Losses losses;
  losses.total = options.share.mtp * divergence.loss;
  losses.mtp_divergence = losses.total.item<double>();
  losses.mtp_overlap = options.share.mtp * divergence.overlap;
  add_statistics(statistics, options, losses);
  return losses;
}

}  // namespace fathom::model
