#include "pretrain/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

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

}  // namespace fathom::pretrain
