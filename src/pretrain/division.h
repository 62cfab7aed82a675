// How ranks divide a step. A step's rows and its micro-batches are those of one rank, in the same
// order: a function of seed and step. Ranks take neighbouring micro-batches; where there are fewer
// than ranks, several share one, each with some of its rows; with sequence parallelism, each with
// some of its tokens.
#pragma once

#include <cstdint>

#include "model/distribution.h"
#include "model/loss.h"
#include "pretrain/recipe.h"

namespace fathom::pretrain {

// All ranks, and of how many neighbours among them each shares tokens or experts.
struct Ranks {
  model::RankGroup all;
  int64_t sequence_parallel = 1;  // ranks that share the tokens of a row
  int64_t expert_parallel = 1;    // ranks that share the experts
};

struct Division {
  model::RankGroup all;
  model::Distribution distribution;                      // of a forward and backward pass
  int64_t total_micro_batches = 1;                       // of a step
  int64_t first_micro_batch = 0, num_micro_batches = 1;  // this rank's
  int64_t part = 0, num_parts = 1;      // of each of those, the tokens that are this rank's
  int64_t stream = 0, num_streams = 1;  // ranks with the same stream read the same rows
};

// Throws Error where rows, tokens or experts do not divide. Every rank calls it.
Division divide(const Ranks& ranks, const Recipe& recipe);

// A rank's part of a batch, and what it is of its sums.
struct LocalBatch {
  model::TrainingBatch batch;
  model::LossShare share;
};
// Part `part` of `num_parts` equal parts by tokens.
LocalBatch local_batch(const model::TrainingBatch& whole, int64_t part, int64_t num_parts);

}  // namespace fathom::pretrain
