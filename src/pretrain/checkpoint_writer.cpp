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

}  // namespace

void CheckpointWriter::start(const RunFolder& folder, const TrainerState& state,
                             const model::Model& model, const Optimizer& optimizer, int64_t keep) {
  wait();
  writing_ = std::async(std::launch::async, [&folder, keep,
                                             snapshot = snapshot_of(state, model, optimizer)] {
    try {
      folder.save(snapshot.state, snapshot.model, snapshot.optimizer, keep);
    } catch (const std::exception& error) {
      fail("the checkpoint of step {} could not be written: {}", snapshot.state.step, error.what());
    }
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
