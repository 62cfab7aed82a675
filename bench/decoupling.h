// Experiment E2's first half: what the indexers' loss does to the main model's gradients, with the
// report's cuts (section 2.1.1 of the report of V3.2) and without each.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"

namespace fathom::bench {

struct DecouplingOptions {
  std::filesystem::path recipe;
  std::vector<std::string> overrides;  // "section.key=value", as pretrain's
  std::filesystem::path model;         // a checkpoint folder of the recipe's shape
  int num_threads = 0;
};

// One micro-batch of the recipe's first step, forward and backward with the indexers' loss and
// without. For "cuts", "no_input_cut" and "no_teacher_cut": whether the main model's gradients are
// the same bits, and the norm of their difference over their norm.
Json measure_decoupling(const DecouplingOptions& options);

}  // namespace fathom::bench
