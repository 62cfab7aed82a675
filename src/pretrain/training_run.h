// A stage of training from its recipe to its model: prepare, resume, train, validate, save, export.
#pragma once

#include <filesystem>
#include <optional>

#include "pretrain/ranks.h"
#include "pretrain/recipe.h"

namespace fathom::pretrain {

struct TrainingRunOptions {
  Recipe recipe;                            // of one stage
  std::filesystem::path run = "runs/nano";  // checkpoints and metrics; a run there is resumed
  // The model that a new run begins with: any checkpoint folder of the same shape. Only the dense
  // stage can do without, from the recipe's seed.
  std::optional<std::filesystem::path> init;
  // Ends the run cleanly after so many minutes of training in all: when the decay has to begin for
  // that, the number of steps is fixed from the rate so far, and kept in trainer.json.
  std::optional<double> minutes;
  std::optional<int64_t> stop_after_step;              // ends early, as a kill would, but saved
  std::optional<std::filesystem::path> export_folder;  // where the finished model goes, in BF16
  // Every rank calls run_training() with its own place and otherwise the same options; all see the
  // same files. The first rank writes metrics, checkpoints and messages.
  RankPlace place;
  int64_t sequence_parallel = 1, expert_parallel = 1;  // see Ranks in division.h
  double rank_timeout_seconds = 600;  // for another rank's answer; one that died is noticed at once
  std::function<void()> prepare;      // the first rank's work before training, such as prepare_data
};

// Data order, learning rate and updates are functions of (recipe, step): a run killed at any moment
// resumes from its last checkpoint to the same bits. SIGTERM or SIGINT while it trains ends it
// after the step under way, with a checkpoint, and then the process by that signal. A non-finite
// loss ends it with an Error that names the stage, the step and the last good checkpoint, and so
// does a rank that dies with the other ranks. Throws Error before options.prepare where the options
// contradict each other, the model to begin with is not there, the tokenizer lacks what the recipe
// needs, another process trains in the folder, or the export could not be written.
void run_training(const TrainingRunOptions& options);

// The preparation alone: corpus, tokenizer, tokens under recipe.data.
void prepare_data(const Recipe& recipe, const std::filesystem::path& recipe_path);

}  // namespace fathom::pretrain
