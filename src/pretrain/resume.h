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

}  // namespace fathom::pretrain
