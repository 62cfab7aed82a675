#include "pretrain/resume.h"

#include "base/check.h"

namespace fathom::pretrain {
namespace {

// What must not change within a run.
Json identity(Json recipe) {
  if (recipe.contains("training"))
    for (const char* key :
         {"steps", "skip_steps", "validate_every", "checkpoint_every", "keep_checkpoints"})
      recipe["training"].erase(key);
  recipe.erase("corpus");
  return recipe;
}

int64_t steps_of(const Json& recipe) {
  return recipe.value(Json::json_pointer("/training/steps"), TrainingRecipe().steps);
}

bool is_same_path(const std::filesystem::path& a, const std::filesystem::path& b) {
  return std::filesystem::weakly_canonical(a) == std::filesystem::weakly_canonical(b);
}

}  // namespace

void go_on_with(TrainerState& state, const Recipe& recipe,
                const std::optional<std::filesystem::path>& init,
                const std::filesystem::path& run) {
  if (identity(state.recipe) != identity(recipe.source))
    fail("{}: was started with another recipe; give --run another folder, or delete this one",
         run.string());
  if (init && state.init && !is_same_path(*init, *state.init))
    fail(
        "{}: began with {}, not with --init {}; leave --init out to go on, or give --run another "
        "folder",
        run.string(), state.init->empty() ? "the recipe's seed" : *state.init, init->string());
  const int64_t steps = recipe.training.steps;
  if (steps != steps_of(state.recipe)) {
    if (steps < state.step)
      fail("{}: \"training.steps\" is {}; expected at least the {} steps that are done",
           run.string(), steps, state.step);
    state.total_steps = steps;
  }
  state.recipe = recipe.source;
}

}  // namespace fathom::pretrain
