// What changes from step to step, as functions of (recipe, step) alone: the learning rate, the
// batch's size, the sequences' length, the weight of the MTP loss, the experts' bias rate.
//
// Learning rate:
//   wsd:    warm-up, plateau, then linear decay over the last decay_fraction of the steps
//   cosine: warm-up, then half a cosine
// Both rise linearly over warmup_steps and fall towards final_fraction of the peak, which the step
// after the last would have.
#pragma once

#include "pretrain/recipe.h"

namespace fathom::pretrain {

// Steps are 0-based.
double learning_rate_factor(const TrainingRecipe& recipe, int64_t step, int64_t total_steps);

// Rows of a step: whole micro-batches.
int64_t rows_of(const TrainingRecipe& recipe, int64_t step);
// Rows of all steps before it: where the step begins in the order of rows.
int64_t rows_before(const TrainingRecipe& recipe, int64_t step);
// Tokens of all steps before it, without those of the recipe's skip_steps.
int64_t tokens_before(const TrainingRecipe& recipe, int64_t step);

// Longest sequence that a row is cut into.
int64_t sequence_length_at(const TrainingRecipe& recipe, int64_t step);

double mtp_weight_at(const TrainingRecipe& recipe, int64_t step, int64_t total_steps);
double expert_bias_rate_at(const TrainingRecipe& recipe, int64_t step, int64_t total_steps);

}  // namespace fathom::pretrain
