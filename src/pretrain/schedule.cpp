#include "pretrain/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>

namespace fathom::pretrain {

double learning_rate_factor(const TrainingRecipe& recipe, int64_t step, int64_t total_steps) {
  const auto steps_left = static_cast<double>(total_steps - step);
  const auto warmup_steps = static_cast<double>(recipe.warmup_steps);
  double height = 0;  // 1 at the peak, 0 at the end
  if (recipe.schedule == "cosine") {
    const double falling_steps = std::max(static_cast<double>(total_steps) - warmup_steps, 1.0);
    const double share = std::clamp(steps_left / falling_steps, 0.0, 1.0);
    height = 0.5 - 0.5 * std::cos(std::numbers::pi * share);
  } else {
    const double falling_steps = recipe.decay_fraction * static_cast<double>(total_steps);
    height = std::clamp(steps_left / std::max(falling_steps, 1.0), 0.0, 1.0);
  }
  const double decay = recipe.final_fraction + (1 - recipe.final_fraction) * height;
  const double warmup = step < recipe.warmup_steps ? (step + 1) / warmup_steps : 1.0;
  return std::min(warmup, decay);
}

namespace {

// Whether `step` is one of the last `fraction` of the steps.
bool is_late(double fraction, int64_t step, int64_t total_steps) {
  return static_cast<double>(step) >= (1 - fraction) * static_cast<double>(total_steps);
}

}  // namespace

int64_t rows_of(const TrainingRecipe& recipe, int64_t step) {
  if (step >= recipe.batch_growth_steps || recipe.first_batch_rows == 0) return recipe.batch_rows;
  const int64_t first = recipe.first_batch_rows / recipe.micro_batch_rows;
  const int64_t last = recipe.batch_rows / recipe.micro_batch_rows;
  return (first + (last - first) * step / recipe.batch_growth_steps) * recipe.micro_batch_rows;
}

int64_t rows_before(const TrainingRecipe& recipe, int64_t step) {
  const int64_t growing = std::min(step, recipe.batch_growth_steps);
  int64_t rows = (step - growing) * recipe.batch_rows;
  for (int64_t i = 0; i < growing; ++i) rows += rows_of(recipe, i);
  return rows;
}

int64_t tokens_before(const TrainingRecipe& recipe, int64_t step) {
  int64_t rows = rows_before(recipe, step);
  const std::set<int64_t> skipped(recipe.skip_steps.begin(), recipe.skip_steps.end());
  for (const int64_t number : skipped)  // from 1
    if (number <= step) rows -= rows_of(recipe, number - 1);
  return rows * recipe.sequence_length;
}

int64_t sequence_length_at(const TrainingRecipe& recipe, int64_t step) {
  if (step >= recipe.length_growth_steps || recipe.first_sequence_length == 0)
    return recipe.sequence_length;
  int64_t num_doublings = 0;
  while (recipe.first_sequence_length << num_doublings < recipe.sequence_length) ++num_doublings;
  const int64_t done = num_doublings * step / recipe.length_growth_steps;
  return std::min(recipe.first_sequence_length << done, recipe.sequence_length);
}

double mtp_weight_at(const TrainingRecipe& recipe, int64_t step, int64_t total_steps) {
  return is_late(recipe.late_mtp_fraction, step, total_steps) ? recipe.late_mtp_weight
                                                              : recipe.mtp_weight;
}

double expert_bias_rate_at(const TrainingRecipe& recipe, int64_t step, int64_t total_steps) {
  return is_late(recipe.fixed_bias_fraction, step, total_steps) ? 0 : recipe.expert_bias_rate;
}

}  // namespace fathom::pretrain
