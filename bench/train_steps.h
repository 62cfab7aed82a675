// Whole training steps of a recipe's dense stage, timed one by one: what bench/train_vs_torch
// holds against the same steps in PyTorch.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"

namespace fathom::bench {

struct TrainStepsOptions {
  std::filesystem::path recipe = "recipes/nano.json";
  std::vector<std::string> overrides;  // "section.key=value", as pretrain's
  // Tokens as pretrain cuts them; empty: random documents of the model's vocabulary.
  std::filesystem::path tokens;
  int64_t steps = 4;  // the first one is not timed
  int num_threads = 0;
  // Where another program finds the same beginning: model/ (the initial weights in f32) and
  // batch.safetensors, `tokens` i32 [steps, rows, sequence_length + 1]. Empty: nowhere.
  std::filesystem::path export_folder;
};

// Forward, backward and update of each step: losses by step, seconds, tokens/s of their median, and
// the same for the process' CPU time, which other work on the machine disturbs less.
Json measure_train_steps(const TrainStepsOptions& options);

}  // namespace fathom::bench
