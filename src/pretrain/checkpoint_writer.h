// Checkpoints written beside the training: a copy is taken at once, a thread writes it. Several
// ranks write theirs together, before training goes on.
#pragma once

#include <cstdint>
#include <future>
#include <utility>

#include "pretrain/run_folder.h"

namespace fathom::pretrain {

class CheckpointWriter {
 public:
  explicit CheckpointWriter(model::RankGroup ranks = {}) : ranks_(std::move(ranks)) {}

  // Copies model and moments (memory for both until they are written) and returns; waits for the
  // checkpoint before. `folder` must outlive the writing. Of several ranks, every one calls it; it
  // returns when this one's files are written, and throws what check() would.
  void start(const RunFolder& folder, const TrainerState& state, const model::Model& model,
             const Optimizer& optimizer, int64_t keep);

  // Both throw the Error of a checkpoint that could not be written; the one before it stays in
  // force. check() does not wait for one that is still being written.
  void wait();
  void check();

  // The destructor waits, and swallows the error.

 private:
  model::RankGroup ranks_;
  std::future<void> writing_;
};

}  // namespace fathom::pretrain
