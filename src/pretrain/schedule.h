// Learning rate as a function of the step.
//   wsd:    warm-up, plateau, then linear decay over the last decay_fraction of the steps
//   cosine: warm-up, then half a cosine
// Both rise linearly over warmup_steps and end at final_fraction of the peak.
#pragma once

#include "pretrain/recipe.h"

namespace fathom::pretrain {

// Multiplier of the peak learning rate at `step` of `total_steps` (0-based).
double learning_rate_factor(const TrainingRecipe& recipe, int64_t step, int64_t total_steps);

}  // namespace fathom::pretrain
