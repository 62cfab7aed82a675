#include "pretrain/resume.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <vector>

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

// Of the steps done, those whose batch the recipe leaves out.
std::set<int64_t> skipped_until(const Json& recipe, int64_t done) {
  const auto numbers =
      recipe.value(Json::json_pointer("/training/skip_steps"), std::vector<int64_t>());
  std::set<int64_t> skipped;
  for (const int64_t number : numbers)
    if (number <= done) skipped.insert(number);
  return skipped;
}

// As "training.seed 1, 2"; empty where they differ in the order of keys at most.
std::string first_difference(const Json& before, const Json& now) {
  const auto text_at = [](const Json& json, const Json::json_pointer& place) {
    return json.contains(place) ? json.at(place).dump() : "not there";
  };
  for (const Json& step : Json::diff(before, now)) {
    std::string name = step.at("path");
    const Json::json_pointer place(name);
    std::replace(name.begin(), name.end(), '/', '.');
    return fmt::format("{} {}, {}", name.substr(1), text_at(before, place), text_at(now, place));
  }
  return "";
}

bool is_same_path(const std::filesystem::path& a, const std::filesystem::path& b) {
  return std::filesystem::weakly_canonical(a) == std::filesystem::weakly_canonical(b);
}

}  // namespace

void go_on_with(TrainerState& state, const Recipe& recipe,
                const std::optional<std::filesystem::path>& init,
                const std::filesystem::path& run) {
  const std::string difference = first_difference(identity(state.recipe), identity(recipe.source));
  if (!difference.empty())
    fail(
        "{}: was started with another recipe (before and now: {}); give --run another folder, or "
        "delete this one",
        run.string(), difference);
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
  const auto skipped = skipped_until(state.recipe, state.step);
  const auto wanted = skipped_until(recipe.source, state.step);
  if (wanted != skipped)
    fail(
        "{}: of the {} steps that are done \"training.skip_steps\" names [{}], but the batches of "
        "[{}] were left out; turn `latest` back to a checkpoint before, or name only later ones",
        run.string(), state.step, fmt::join(wanted, ", "), fmt::join(skipped, ", "));
  state.recipe = recipe.source;
}

void check_same_origin(const TrainerState& state, const TokenOrigin& now,
                       const std::filesystem::path& run) {
  if (!state.tokens) return;
  const bool is_same_tokenizer = state.tokens->tokenizer == now.tokenizer;
  if (is_same_tokenizer && state.tokens->corpus == now.corpus) return;
  fail("{}: trained on another {} than is there now; bring it back, or give --run another folder",
       run.string(), is_same_tokenizer ? "text" : "tokenizer's tokens");
}

void check_same_tokenizer(const std::filesystem::path& init, const Recipe& recipe) {
  const auto tokenizer = recipe.data / "tokenizer/tokenizer.json";
  std::string before;
  if (std::filesystem::exists(init / "tokenizer.json"))
    before = hash_of_file(init / "tokenizer.json");
  else if (std::filesystem::exists(init / "trainer.json"))
    before = RunFolder::load_state(init).tokens.value_or(TokenOrigin()).tokenizer;
  if (before.empty() || !std::filesystem::exists(tokenizer) || before == hash_of_file(tokenizer))
    return;
  fail(
      "--init {}: its model knows another tokenizer than {}, so the same ids would be other text; "
      "put the model's tokenizer there and delete {}",
      init.string(), tokenizer.string(), (recipe.data / "tokens").string());
}

}  // namespace fathom::pretrain
