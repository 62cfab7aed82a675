#include "pretrain/recipe_source.h"

#include <fmt/format.h>

#include "pretrain/recipe.h"

namespace fathom::pretrain {

std::string RecipeSource::of(std::string_view key) const {
  const std::string path(key);
  if (const auto it = overrides.find(path); it != overrides.end()) return it->second;
  // A phase's own value, or for its model that of a phase or stage before it, stands before the
  // recipe's.
  for (int s = static_cast<int>(stage); s > 0; --s) {
    const std::string place = fmt::format("stages.{}", kStages[s].first);
    for (int64_t p = s == static_cast<int>(stage) ? phase : kMostPhases; p > 0; --p) {
      for (const auto& of_phase : {fmt::format("{}[{}]", place, p - 1), place}) {
        const auto it = lines.find(fmt::format("{}.{}", of_phase, path));
        if (it != lines.end()) return fmt::format("{}:{}", name, it->second);
      }
      if (!path.starts_with("model")) break;
    }
    if (!path.starts_with("model")) break;
  }
  if (const auto it = lines.find(path); it != lines.end())
    return fmt::format("{}:{}", name, it->second);
  const size_t dot = path.rfind('.');
  return dot == std::string::npos ? name : of(path.substr(0, dot));
}

}  // namespace fathom::pretrain
