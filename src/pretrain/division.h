// How ranks divide a step. A step's rows and its micro-batches are those of one rank, in the same
// order: a function of seed and step. Ranks take neighbouring micro-batches; where there are fewer
// than ranks, several share one, each with some of its rows; with sequence parallelism, each with
// some of its tokens.
#pragma once

#include <cstdint>
#include <map>

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

// What of a step is this rank's.
struct StepShare {
  int64_t total_micro_batches = 1;
  // All ranks have as many. Where they do not divide, the last ranks' go beyond the total.
  int64_t first_micro_batch = 0, num_micro_batches = 1;
  int64_t part = 0, num_parts = 1;  // of each of those, the tokens that are this rank's
};

struct Division {
  model::RankGroup all;
  // Of a forward and backward pass, by StepShare::num_parts: those of every step of the recipe, and
  // one whose rows no rank shares by rows, as in validation.
  std::map<int64_t, model::Distribution> distributions;
  int64_t stream = 0, num_streams = 1;  // ranks with the same stream read the same rows
  int64_t sequence_parallel = 1;
  int64_t micro_batch_rows = 1;

  // A step of so many micro-batches: a growing batch has fewer in its first steps.
  StepShare share_of(int64_t total_micro_batches) const;
};

// Throws Error where ranks, tokens or experts do not divide.
void check_ranks(const Ranks& ranks, const Recipe& recipe);

// Throws Error as check_ranks, and where the rows of the full batch do not divide. Every rank calls
// it.
Division divide(const Ranks& ranks, const Recipe& recipe);

// A rank's part of a batch, and what it is of its sums.
struct LocalBatch {
  model::TrainingBatch batch;
  model::LossShare share;
};
// Part `part` of `num_parts` equal parts by tokens.
LocalBatch local_batch(const model::TrainingBatch& whole, int64_t part, int64_t num_parts);

}  // namespace fathom::pretrain
