// What may change of a run when it goes on from a checkpoint.
#pragma once

#include <filesystem>
#include <optional>

#include "pretrain/recipe.h"
#include "pretrain/run_folder.h"

namespace fathom::pretrain {

// The checkpoint's state under the recipe as it is now: other steps than were asked for then are
// the new total, the same leave the one that a time budget may have fixed. An Error names what may
// not change, or cannot any more, and `init` where the run is known to have begun with another
// model.
void go_on_with(TrainerState& state, const Recipe& recipe,
                const std::optional<std::filesystem::path>& init, const std::filesystem::path& run);

// Throws Error where the run's tokens are known to have been others, by their text or tokenizer.
void check_same_origin(const TrainerState& state, const TokenOrigin& now,
                       const std::filesystem::path& run);

// Throws Error where the model of `init` is known to have another tokenizer than the recipe's data.
void check_same_tokenizer(const std::filesystem::path& init, const Recipe& recipe);

}  // namespace fathom::pretrain
