#include "pretrain/schedule.h"

#include <algorithm>

namespace fathom::pretrain {

double learning_rate_factor(const TrainingRecipe& recipe, int64_t step, int64_t total_steps) {
  const double warmup = step < recipe.warmup_steps ? static_cast<double>(step + 1) /
                                                         static_cast<double>(recipe.warmup_steps)
                                                   : 1.0;
  const double decay_steps = recipe.decay_fraction * static_cast<double>(total_steps);
  const double left = static_cast<double>(total_steps - step) / std::max(decay_steps, 1.0);
  const double decay =
      recipe.final_fraction + (1 - recipe.final_fraction) * std::clamp(left, 0.0, 1.0);
  return std::min(warmup, decay);
}

}  // namespace fathom::pretrain
