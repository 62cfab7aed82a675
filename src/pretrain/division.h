// How ranks divide a step. A step's rows and its micro-batches are those of one rank, in the same
// order: a function of seed and step. Ranks take neighbouring micro-batches; where there are fewer
// than ranks, several share one, each with some of its rows.
#pragma once

#include <cstdint>

#include "model/distribution.h"
#include "model/loss.h"
#include "pretrain/recipe.h"

namespace fathom::pretrain {

struct Division {
  model::RankGroup all;
  model::Distribution distribution;                      // of a forward and backward pass
  int64_t total_micro_batches = 1;                       // of a step
  int64_t first_micro_batch = 0, num_micro_batches = 1;  // this rank's
  int64_t part = 0, num_parts = 1;  // of each of those, the rows that are this rank's
};

// Throws Error where the rows do not divide. Every rank calls it.
Division divide(const model::RankGroup& all, const TrainingRecipe& recipe);

// A rank's part of a batch, and what it is of its sums.
struct LocalBatch {
  model::TrainingBatch batch;
  model::LossShare share;
};
// Part `part` of `num_parts` equal parts by tokens; rows must not be cut.
LocalBatch local_batch(const model::TrainingBatch& whole, int64_t part, int64_t num_parts);

}  // namespace fathom::pretrain
