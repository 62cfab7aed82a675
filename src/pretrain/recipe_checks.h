// Values that a recipe may not have, alone or together.
#pragma once

#include "pretrain/recipe.h"
#include "pretrain/recipe_source.h"

namespace fathom::pretrain {

// Throws Error naming the key at fault and where it was written.
void check_recipe(const Recipe& recipe, const RecipeSource& source);

}  // namespace fathom::pretrain
