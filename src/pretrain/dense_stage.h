// The dense stage of pre-training: language modelling with multi-token prediction, dense attention,
// bias-balanced experts (report of V3, sections 2 and 4). It is what the sparse stages start from.
#pragma once

#include <filesystem>
#include <optional>

#include "pretrain/recipe.h"

namespace fathom::pretrain {

struct DenseStageOptions {
  Recipe recipe;
  std::filesystem::path run = "runs/nano";  // checkpoints and metrics; a run there is resumed
  // Ends the run cleanly after so many minutes of training in all: when the decay has to begin for
  // that, the number of steps is fixed from the rate so far, and kept in trainer.json.
  std::optional<double> minutes;
  std::optional<int64_t> stop_after_step;              // ends early, as a kill would, but saved
  std::optional<std::filesystem::path> export_folder;  // where the finished model goes, in BF16
};

// Corpus and tokens are made first if they are not there. Data order, learning rate and updates are
// functions of (recipe, step): a run killed at any moment resumes from its last checkpoint to the
// same bits. A non-finite loss ends it with an Error that names the step and the last good
// checkpoint.
void run_dense_stage(const DenseStageOptions& options);

// The preparation alone: corpus, tokenizer, tokens under recipe.data.
void prepare_data(const Recipe& recipe, const std::filesystem::path& recipe_path);

}  // namespace fathom::pretrain
