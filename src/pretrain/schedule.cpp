#include "pretrain/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace fathom::pretrain {

double learning_rate_factor(const TrainingRecipe& recipe, int64_t step, int64_t total_steps) {
  const auto steps_left = static_cast<double>(total_steps - step);
  const auto warmup_steps = static_cast<double>(recipe.warmup_steps);
  if (step < recipe.warmup_steps && recipe.schedule == "cosine")
    return static_cast<double>(step + 1) / warmup_steps;
  double left = 0;  // 1 at the peak, 0 at the end
  if (recipe.schedule == "cosine") {
    const double share = steps_left / std::max(static_cast<double>(total_steps) - warmup_steps, 1.0);
    left = 0.5 - 0.5 * std::cos(std::numbers::pi * std::clamp(share, 0.0, 1.0));
  } else {
    const double decay_steps = recipe.decay_fraction * static_cast<double>(total_steps);
    left = std::clamp(steps_left / std::max(decay_steps, 1.0), 0.0, 1.0);
  }
  const double decay = recipe.final_fraction + (1 - recipe.final_fraction) * left;
  return step < recipe.warmup_steps ? std::min(static_cast<double>(step + 1) / warmup_steps, decay)
                                    : decay;
}

}  // namespace fathom::pretrain
