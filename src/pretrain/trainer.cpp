#include "pretrain/trainer.h"

#include <torch/csrc/autograd/grad_mode.h>

#include <cmath>
#include <utility>

#include "base/check.h"
#include "model/checkpoint.h"
#include "pretrain/schedule.h"

namespace fathom::pretrain {
namespace {

using torch::Tensor;

model::LossOptions loss_options(const TrainingRecipe& recipe) {
  model::LossOptions options;
  options.mtp_weight = recipe.mtp_weight;
  options.balance_weight = recipe.balance_weight;
  options.forward = {
      .form = model::AttentionForm::kMha, .sparse = false, .bf16_matmuls = recipe.bf16_matmuls};
  return options;
}

void add_counts(const std::vector<Tensor>& more, std::vector<Tensor>& total) {
  if (total.empty())
    total = more;
  else
    for (size_t i = 0; i < more.size(); ++i) total[i] = total[i] + more[i];
}

// The correction biases in the order of Losses::expert_counts.
std::vector<Tensor> expert_biases(const model::Weights& weights) {
  std::vector<Tensor> biases;
  for (const auto& layer : weights.layers)
    if (layer.moe) biases.push_back(layer.moe->e_score_correction_bias);
  if (weights.mtp) biases.push_back(weights.mtp->layer.moe->e_score_correction_bias);
  return biases;
}

// What a stage may change of its model's config.
void check_same_shape(const model::Config& found, const model::Config& wanted,
                      const std::filesystem::path& folder) {
  const Json is = model::to_json(found), should_be = model::to_json(wanted);
  for (const auto& [key, value] : should_be.items()) {
    if (key == "max_position_embeddings" || key == "rope_scaling" || key == "index_topk" ||
        key == "initializer_range")
      continue;
    if (!is.contains(key) || is[key] != value)
      fail("{}: {} is {}; the recipe's model has {}", folder.string(), key,
           is.contains(key) ? is[key].dump() : "missing", value.dump());
  }
}

}  // namespace

Trainer::Trainer(const Recipe& recipe, model::Model model)
    : recipe_(recipe),
      model_(std::move(model)),
      optimizer_(model::tensor_slots(model_.weights, model_.config), recipe.optimizer) {}

Trainer::Trainer(const Recipe& recipe)
    : Trainer(recipe, model::initialise(recipe.model, recipe.training.seed)) {}

Trainer Trainer::begin_with(const Recipe& recipe, const std::filesystem::path& folder) {
  model::Model model = model::load_checkpoint_for_training(folder);
  check_same_shape(model.config, recipe.model, folder);
  model.config = recipe.model;
  return Trainer(recipe, std::move(model));
}

Trainer Trainer::resume(const Recipe& recipe, const std::filesystem::path& checkpoint) {
  Trainer trainer = begin_with(recipe, checkpoint);
  trainer.optimizer_.restore(RunFolder::load_optimizer(checkpoint));
  return trainer;
}

StepReport Trainer::step(const TokenRows& rows, int64_t step, int64_t total_steps) {
  const TrainingRecipe& t = recipe_.training;
  const auto indices = rows_of_step(rows.num_rows(), t.batch_rows, t.seed, step);
  const int64_t num_micro_batches = t.batch_rows / t.micro_batch_rows;
  StepReport report;
  std::vector<Tensor> counts;
  for (int64_t i = 0; i < num_micro_batches; ++i) {
    const std::vector<int64_t> part(indices.begin() + i * t.micro_batch_rows,
                                    indices.begin() + (i + 1) * t.micro_batch_rows);
    const auto batch = make_batch(rows, part, model_.config.bos_token_id, t.document_masking);
    const auto losses = model::language_model_loss(model_, batch, loss_options(t));
    (losses.total / static_cast<double>(num_micro_batches)).backward();
    report.loss += losses.main / static_cast<double>(num_micro_batches);
    report.mtp_loss += losses.mtp / static_cast<double>(num_micro_batches);
    add_counts(losses.expert_counts, counts);
  }
  if (!std::isfinite(report.loss) || !std::isfinite(report.mtp_loss)) return report;
  report.learning_rate =
      recipe_.optimizer.learning_rate * learning_rate_factor(t, step, total_steps);
  const torch::NoGradGuard no_grad;
  report.gradient_norm = optimizer_.step(report.learning_rate, step + 1);
  balance_experts(counts, report);
  return report;
}

void Trainer::balance_experts(const std::vector<Tensor>& counts, StepReport& report) {
  const auto biases = expert_biases(model_.weights);
  for (size_t i = 0; i < counts.size(); ++i) {
    const Tensor load = counts[i].to(torch::kFloat32);
    const Tensor mean = load.mean();
    report.max_violation = std::max(report.max_violation, (load.max() / mean).item<double>() - 1.0);
    Tensor bias = biases[i];
    bias.add_((mean - load).sign(), recipe_.training.expert_bias_rate);
    bias.sub_(bias.mean());  // selection does not see a common shift; without this it would drift
  }
}

double Trainer::validate(const TokenRows& rows, int64_t max_rows) const {
  const torch::NoGradGuard no_grad;
  model::LossOptions options = loss_options(recipe_.training);
  options.mtp_weight = 0;
  double nats = 0, num_targets = 0;
  const int64_t count = std::min(rows.num_rows(), max_rows);
  for (int64_t begin = 0; begin < count; begin += recipe_.training.micro_batch_rows) {
    std::vector<int64_t> part;
    for (int64_t i = begin; i < std::min(begin + recipe_.training.micro_batch_rows, count); ++i)
      part.push_back(i);
    const auto batch =
        make_batch(rows, part, model_.config.bos_token_id, recipe_.training.document_masking);
    const auto targets = (batch.targets_N >= 0).sum().item<double>();
    nats += model::language_model_loss(model_, batch, options).main * targets;
    num_targets += targets;
  }
  return nats / num_targets;
}

}  // namespace fathom::pretrain
