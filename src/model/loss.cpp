#include "model/loss.h"

#include "model/ops.h"

namespace fathom::model {
namespace {

using torch::Tensor;

// For each token the one after its target, -1 at the end of a segment or where it is not known.
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

}  // namespace

Losses language_model_loss(const Model& model, const TrainingBatch& batch,
                           const LossOptions& options) {
  std::vector<Segment> segments;
  for (int64_t length : batch.segment_lengths) segments.push_back({length, 0, nullptr});
  const ops::LinearOptions linear{options.forward.bf16_matmuls, false};
  Losses losses;
  ExpertStatistics experts;
  const Tensor hidden =
      forward(model, batch.tokens_N, segments, options.forward, nullptr, &experts);
  const Tensor main =
      ops::linear_cross_entropy(hidden, model.weights.lm_head, batch.targets_N, linear);
  losses.main = main.item<double>();
  losses.total = main;
  if (options.mtp_weight > 0 && model.weights.mtp) {
    const Tensor predicted = forward_mtp(model, hidden, batch.targets_N.clamp_min(0), segments,
                                         options.forward, &experts);
    const Tensor mtp = ops::linear_cross_entropy(predicted, model.weights.lm_head,
                                                 targets_after_next(batch), linear);
    losses.mtp = mtp.item<double>();
    losses.total = main + options.mtp_weight * mtp;
  }
  if (options.balance_weight > 0 && torch::GradMode::is_enabled() && !experts.balance.empty())
    losses.total = losses.total + options.balance_weight * torch::stack(experts.balance).mean();
  losses.expert_counts = experts.counts_E;
  return losses;
}

}  // namespace fathom::model
