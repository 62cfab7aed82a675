#include "pretrain/trainer.h"

#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "model/checkpoint.h"
#include "model/verify.h"
#include "pretrain/schedule.h"

namespace fathom::pretrain {
namespace {

using torch::Tensor;

double mean(const std::vector<double>& values) {
  return values.empty() ? 0
                        : std::accumulate(values.begin(), values.end(), 0.0) /
                              static_cast<double>(values.size());
}

// A batch that does not count leaves zeros, so that ranks have as many counts as each other.
void add_counts(const std::vector<Tensor>& more, bool does_count, std::vector<Tensor>& total) {
  if (total.empty())
    for (const Tensor& count : more) total.push_back(torch::zeros_like(count));
  for (size_t i = 0; does_count && i < more.size(); ++i) total[i] = total[i] + more[i];
}

void add_scaled(const std::vector<double>& more, double factor, std::vector<double>& total) {
  CHECK_EQ(more.size(), total.size());
  for (size_t i = 0; i < more.size(); ++i) total[i] += factor * more[i];
}

// A step's figures and counts are sums over the ranks' parts of it.
void sum_over(const model::RankGroup& ranks, StepReport& report, std::vector<Tensor>& counts) {
  if (ranks.size() == 1) return;
  double* const figures[] = {&report.loss,        &report.mtp_loss,     &report.mtp_divergence,
                             &report.mtp_overlap, &report.indexer_loss, &report.indexer_recall};
  Tensor sums = torch::zeros({std::ssize(figures)}, torch::kDouble);
  for (size_t i = 0; i < std::size(figures); ++i) sums.data_ptr<double>()[i] = *figures[i];
  ranks.all_reduce(sums);
  for (size_t i = 0; i < std::size(figures); ++i) *figures[i] = sums.data_ptr<double>()[i];
  for (Tensor& count : counts) {
    count = count.clone();
    ranks.all_reduce(count);
  }
}

void sum_over(const model::RankGroup& ranks, std::vector<double>& values) {
  ranks.all_reduce(
      torch::from_blob(values.data(), {std::ssize(values)}, torch::TensorOptions(torch::kDouble)));
}

// The correction biases in the order of Losses::expert_counts; undefined where gates have none.
std::vector<Tensor> expert_biases(const model::Weights& weights) {
  std::vector<Tensor> biases;
  for (const auto& layer : weights.layers)
    if (layer.moe) biases.push_back(layer.moe->e_score_correction_bias);
  if (weights.mtp) biases.push_back(weights.mtp->layer.moe->e_score_correction_bias);
  return biases;
}

model::KeyRule key_rule_named(const std::string& name) {
  constexpr std::pair<std::string_view, model::KeyRule> kRules[] = {
      {"indexer", model::KeyRule::kIndexer},
      {"window", model::KeyRule::kWindow},
      {"random", model::KeyRule::kRandom},
      {"oracle", model::KeyRule::kOracle}};
  for (const auto& [known, rule] : kRules)
    if (known == name) return rule;
  fail("key rule \"{}\": expected indexer, window, random or oracle", name);
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

model::LossOptions loss_options(Stage stage, const TrainingRecipe& recipe) {
  model::LossOptions options;
  // The warm-up has no MTP loss to weigh, but MTP's layer has an indexer, too.
  options.mtp_weight = stage == Stage::kWarmup ? 1 : recipe.mtp_weight;
  options.balance_weight = recipe.balance_weight;
  options.balance =
      recipe.balance == "sequence" ? model::Balance::kSequence : model::Balance::kBatch;
  options.indexer_weight = recipe.indexer_weight;
  options.language_model = stage != Stage::kWarmup;
  options.forward = {.form = model::AttentionForm::kMha,
                     .sparse = trains_sparsely(stage),
                     .indexer_loss = trains_indexer(stage),
                     .bf16_matmuls = recipe.bf16_matmuls};
  return options;
}

model::LossOptions loss_options(const Recipe& recipe) {
  model::LossOptions options = loss_options(recipe.stage, recipe.training);
  model::ForwardOptions& forward = options.forward;
  forward.key_rule = key_rule_named(recipe.experiment.key_rule);
  forward.key_seed = recipe.training.seed;
  forward.detach_indexer_input = recipe.experiment.detach_indexer_input;
  forward.detach_teacher = recipe.experiment.detach_teacher;
  // Where something else selects, the indexer has nobody to imitate.
  if (forward.key_rule != model::KeyRule::kIndexer) forward.indexer_loss = false;
  return options;
}

void freeze(model::Model& model, Stage stage) {
  for (const auto& slot : model::tensor_slots(model.weights, model.config)) {
    const bool is_trained = stage == Stage::kWarmup ? model::is_indexer(slot)
                            : stage == Stage::kMtp  ? model::is_mtp(slot, model.config)
                                                    : true;
    slot.tensor->set_requires_grad(is_trained && slot.role != model::Role::kExpertBias);
  }
}

namespace {

model::Model frozen(model::Model model, Stage stage) {
  freeze(model, stage);
  return model;
}

}  // namespace

Trainer::Trainer(const Recipe& recipe, model::Model model, const Ranks& ranks)
    : recipe_(recipe),
      division_(divide(ranks, recipe)),
      model_(frozen(std::move(model), recipe.stage)),
      optimizer_(model::tensor_slots(model_.weights, model_.config), recipe.optimizer, ranks.all) {}

Trainer::Trainer(const Recipe& recipe, const Ranks& ranks)
    : Trainer(recipe, model::initialise(recipe.model, recipe.training.seed), ranks) {}

Trainer Trainer::begin_with(const Recipe& recipe, const std::filesystem::path& folder,
                            const Ranks& ranks) {
  model::verify_checkpoint(folder);
  model::Model model = model::load_checkpoint_for_training(folder);
  check_same_shape(model.config, recipe.model, folder);
  model.config = recipe.model;
  return Trainer(recipe, std::move(model), ranks);
}

Trainer Trainer::resume(const Recipe& recipe, const std::filesystem::path& checkpoint,
                        const Ranks& ranks) {
  const auto optimizer = RunFolder::load_optimizer(checkpoint);  // names a shard that is missing
  Trainer trainer = begin_with(recipe, checkpoint, ranks);
  trainer.optimizer_.restore(optimizer);
  return trainer;
}

void Trainer::add_micro_batch(const model::TrainingBatch& batch, const model::LossOptions& options,
                              double weight, StepReport& report,
                              std::vector<Tensor>& counts) const {
  const auto losses = recipe_.stage == Stage::kMtp
                          ? model::mtp_divergence_loss(model_, batch, options)
                          : model::language_model_loss(model_, batch, options);
  (losses.total * weight).backward();
  report.loss += losses.main * weight;
  report.mtp_loss += losses.mtp * weight;
  report.mtp_divergence += losses.mtp_divergence * weight;
  report.mtp_overlap += losses.mtp_overlap * weight;
  report.indexer_loss += mean(losses.indexer) * weight;
  report.indexer_recall += mean(losses.indexer_recall) * weight;
  add_counts(losses.expert_counts, weight > 0, counts);
}

StepReport Trainer::step(const TokenRows& rows, int64_t step, int64_t total_steps) {
  const TrainingRecipe& t = recipe_.training;
  if (std::find(t.skip_steps.begin(), t.skip_steps.end(), step + 1) != t.skip_steps.end())
    return {.is_skipped = true};
  const int64_t batch_rows = rows_of(t, step);
  const auto indices = rows_in_order(rows.num_rows(), rows_before(t, step), batch_rows, t.seed);
  const StepShare share = division_.share_of(batch_rows / t.micro_batch_rows);
  model::LossOptions options = loss_options(recipe_);
  if (recipe_.stage != Stage::kWarmup) options.mtp_weight = mtp_weight_at(t, step, total_steps);
  options.forward.distribution = &division_.distributions.at(share.num_parts);
  StepReport report;
  std::vector<Tensor> counts;
  for (int64_t i = 0; i < share.num_micro_batches; ++i) {
    // Ranks work in step: one that has no micro-batch left repeats the last for nothing.
    const int64_t number = share.first_micro_batch + i, last = share.total_micro_batches - 1;
    const double weight = number <= last ? 1 / static_cast<double>(share.total_micro_batches) : 0;
    const auto begin = indices.begin() + std::min(number, last) * t.micro_batch_rows;
    const auto local = local_batch(
        make_batch(rows, {begin, begin + t.micro_batch_rows}, model_.config.bos_token_id,
                   t.document_masking, sequence_length_at(t, step)),
        share.part, share.num_parts);
    options.share = local.share;
    add_micro_batch(local.batch, options, weight, report, counts);
  }
  sum_over(division_.all, report, counts);
  if (!std::isfinite(report.sum_of_losses())) return report;
  report.learning_rate =
      recipe_.optimizer.learning_rate * learning_rate_factor(t, step, total_steps);
  const torch::NoGradGuard no_grad;
  const auto norms = optimizer_.step(report.learning_rate, step + 1);
  report.gradient_norm = norms.model;
  report.indexer_gradient_norm = norms.indexer;
  if (recipe_.stage != Stage::kWarmup)
    balance_experts(counts, expert_bias_rate_at(t, step, total_steps), report);
  return report;
}

void Trainer::balance_experts(const std::vector<Tensor>& counts, double rate, StepReport& report) {
  // The counts are of the first layers where MTP's is not run, and of MTP's alone in its stage.
  const auto all = expert_biases(model_.weights);
  CHECK_LE(counts.size(), all.size());
  const std::span biases = recipe_.stage == Stage::kMtp ? std::span(all).last(counts.size())
                                                        : std::span(all).first(counts.size());
  for (size_t i = 0; i < counts.size(); ++i) {
    const Tensor load = counts[i].to(torch::kFloat32);
    const Tensor mean = load.mean();
    report.max_violation = std::max(report.max_violation, (load.max() / mean).item<double>() - 1.0);
    Tensor bias = biases[i];
    if (rate == 0 || !bias.defined()) continue;
    bias.add_((mean - load).sign(), rate);
    bias.sub_(bias.mean());  // selection does not see a common shift; without this it would drift
  }
}

model::ForwardOptions Trainer::validation_options() const {
  model::ForwardOptions options = loss_options(recipe_).forward;
  options.sparse = trains_indexer(recipe_.stage);
  options.indexer_loss = false;
  options.attention_entropy = recipe_.experiment.attention_entropy;
  return options;
}

struct Trainer::ValidationSums {
  double targets = 0, mtp_targets = 0, tokens = 0;  // that the sums below are over
  double loss = 0;                                  // targets
  double mtp_divergence = 0, mtp_overlap = 0;       // mtp_targets
  std::vector<double> indexer_loss, indexer_recall, attention_entropy;  // tokens; per layer

  void add_up(const model::RankGroup& ranks) {
    double* const numbers[] = {&targets, &mtp_targets,    &tokens,
                               &loss,    &mtp_divergence, &mtp_overlap};
    std::vector<double> sums;
    for (const double* number : numbers) sums.push_back(*number);
    for (auto* values : {&sums, &indexer_loss, &indexer_recall, &attention_entropy})
      sum_over(ranks, *values);
    for (size_t i = 0; i < sums.size(); ++i) *numbers[i] = sums[i];
  }

  Validation means() const {
    const auto over = [](std::vector<double> values, double count) {
      for (double& value : values) value /= count;
      return values;
    };
    const double drafts = std::max(mtp_targets, 1.0);
    return {.loss = loss / targets,
            .mtp_divergence = mtp_divergence / drafts,
            .mtp_overlap = mtp_overlap / drafts,
            .indexer_loss = over(indexer_loss, tokens),
            .indexer_recall = over(indexer_recall, tokens),
            .attention_entropy = over(attention_entropy, tokens)};
  }
};

void Trainer::add_validation(const model::TrainingBatch& whole, double factor,
                             ValidationSums& sums) const {
  const auto& distribution = division_.distributions.at(division_.sequence_parallel);
  const auto& sequence = distribution.sequence;
  const auto local = local_batch(whole, sequence.rank(), sequence.size());
  model::LossOptions options = loss_options(recipe_);
  options.mtp_weight = 0;
  options.language_model = true;
  options.forward = validation_options();
  options.forward.distribution = &distribution;
  options.share = local.share;
  const auto count = [&](const Tensor& of) { return factor * (of >= 0).sum().item<double>(); };
  const double targets = count(whole.targets_N), tokens = count(whole.tokens_N);
  const auto of_model = model::language_model_loss(model_, local.batch, options);
  sums.loss += of_model.main * targets;
  add_scaled(of_model.attention_entropy, tokens, sums.attention_entropy);
  if (sequence.is_first()) sums.targets += targets, sums.tokens += tokens;
  if (recipe_.stage == Stage::kMtp) {
    const double mtp_targets = count(model::targets_after_next(whole));
    const auto drafts = model::mtp_divergence_loss(model_, local.batch, options);
    sums.mtp_targets += mtp_targets;
    sums.mtp_divergence += drafts.mtp_divergence * mtp_targets;
    sums.mtp_overlap += drafts.mtp_overlap * mtp_targets;
  }
  if (sums.indexer_loss.empty()) return;
  options.language_model = options.forward.sparse = options.forward.attention_entropy = false;
  options.forward.indexer_loss = true;
  const auto of_indexers = model::language_model_loss(model_, local.batch, options);
  add_scaled(of_indexers.indexer, tokens, sums.indexer_loss);
  add_scaled(of_indexers.indexer_recall, tokens, sums.indexer_recall);
}

Validation Trainer::validate(const TokenRows& rows, int64_t max_rows) const {
  const torch::NoGradGuard no_grad;
  const TrainingRecipe& t = recipe_.training;
  const auto num_layers = static_cast<size_t>(model_.config.num_hidden_layers);
  ValidationSums sums;
  if (loss_options(recipe_).forward.indexer_loss && recipe_.stage != Stage::kMtp)
    sums.indexer_loss = sums.indexer_recall = std::vector<double>(num_layers);
  if (recipe_.experiment.attention_entropy) sums.attention_entropy.resize(num_layers);
  const int64_t count = std::min(rows.num_rows(), max_rows);
  const int64_t num_batches = (count + t.micro_batch_rows - 1) / t.micro_batch_rows;
  // Ranks that share experts work in step: where one has no batch left, it repeats the last for
  // nothing.
  const int64_t num_batches_of_all =
      (num_batches + division_.num_streams - 1) / division_.num_streams * division_.num_streams;
  for (int64_t i = division_.stream; i < num_batches_of_all; i += division_.num_streams) {
    const int64_t begin = std::min(i, num_batches - 1) * t.micro_batch_rows;
    std::vector<int64_t> part(std::min(t.micro_batch_rows, count - begin));
    std::iota(part.begin(), part.end(), begin);
    add_validation(make_batch(rows, part, model_.config.bos_token_id, t.document_masking),
                   i < num_batches ? 1 : 0, sums);
  }
  sums.add_up(division_.all);
  return sums.means();
}

}  // namespace fathom::pretrain
