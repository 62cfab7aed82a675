// Learning rate as a function of the step: warm-up, plateau, linear decay.
#pragma once

#include "pretrain/recipe.h"

namespace fathom::pretrain {

// Multiplier of the peak learning rate at `step` of `total_steps` (0-based).
double learning_rate_factor(const TrainingRecipe& recipe, int64_t step, int64_t total_steps);

}  // namespace fathom::pretrain
