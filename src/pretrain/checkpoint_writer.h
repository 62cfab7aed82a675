// Checkpoints written beside the training: a copy is taken at once, a thread writes it. Of several
// ranks, each writes its own files; the threads wait for each other, not the training.
#pragma once

#include <cstdint>
#include <future>

#include "pretrain/run_folder.h"

namespace fathom::pretrain {

class CheckpointWriter {
 public:
  explicit CheckpointWriter(const model::RankGroup& ranks = {})
      : ranks_(ranks.beside("checkpoints")) {}
  CheckpointWriter(const CheckpointWriter&) = delete;

  // Copies what this rank writes, moments and, on the first, the model (memory for both until they
  // are written), and returns; waits for the checkpoint before. `folder` must outlive the writing.
  // Every rank calls it.
  void start(const RunFolder& folder, const TrainerState& state, const model::Model& model,
             const Optimizer& optimizer, int64_t keep);

  // Both throw the Error of a checkpoint that could not be written; the one before it stays in
  // force. check() does not wait for one that is still being written.
  void wait();
  void check();

  // The destructor waits, and swallows the error.

 private:
  model::RankGroup ranks_;  // whose messages training's do not wait for
  std::future<void> writing_;
};

}  // namespace fathom::pretrain
