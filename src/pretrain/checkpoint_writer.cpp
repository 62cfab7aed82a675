#include "pretrain/checkpoint_writer.h"

#include <torch/csrc/autograd/grad_mode.h>

#include <chrono>
#include <memory>
#include <utility>

#include "base/check.h"

namespace fathom::pretrain {
namespace {

// What a checkpoint holds, apart from the tensors that training goes on with.
struct Snapshot {
  TrainerState state;
  model::Model model;
  std::vector<Optimizer::State> optimizer;
};

Snapshot snapshot_of(const TrainerState& state, const model::Model& model,
                     const Optimizer& optimizer) {
  const torch::NoGradGuard no_grad;
  Snapshot snapshot{state, model, optimizer.state()};
  for (const auto& slot : model::tensor_slots(snapshot.model.weights, snapshot.model.config))
    *slot.tensor = slot.tensor->detach().clone();
  for (auto& moment : snapshot.optimizer) moment.tensor = moment.tensor.clone();
  return snapshot;
}

void save(const RunFolder& folder, const Snapshot& snapshot, int64_t keep,
          const model::RankGroup& ranks) {
  try {
    folder.save(snapshot.state, snapshot.model, snapshot.optimizer, keep, ranks);
  } catch (const model::RankLost&) {
    throw;  // the run says what is to be done
  } catch (const std::exception& error) {
    fail("the checkpoint of step {} could not be written: {}", snapshot.state.step, error.what());
  }
}

}  // namespace

void CheckpointWriter::start(const RunFolder& folder, const TrainerState& state,
                             const model::Model& model, const Optimizer& optimizer, int64_t keep) {
  wait();
  // Ranks wait for each other's files, in messages of the same group as training's: a thread of its
  // own would send them between training's, in another order on each rank.
  if (ranks_.size() > 1) return save(folder, {state, model, optimizer.state()}, keep, ranks_);
  writing_ = std::async(std::launch::async,
                        [&folder, keep, snapshot = snapshot_of(state, model, optimizer)] {
                          save(folder, snapshot, keep, {});
                        });
}

void CheckpointWriter::wait() {
  if (writing_.valid()) writing_.get();
}

void CheckpointWriter::check() {
  if (writing_.valid() && writing_.wait_for(std::chrono::seconds(0)) == std::future_status::ready)
    writing_.get();
}

}  // namespace fathom::pretrain
