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

// The model is the first rank's to write.
Snapshot snapshot_of(const TrainerState& state, const model::Model& model,
                     const Optimizer& optimizer, bool is_first) {
  const torch::NoGradGuard no_grad;
  Snapshot snapshot{state, model, optimizer.state()};
  for (const auto& slot : model::tensor_slots(snapshot.model.weights, snapshot.model.config))
    *slot.tensor = is_first ? slot.tensor->detach().clone() : torch::Tensor();
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
  writing_ = std::async(
      std::launch::async,
      [&folder, keep, this, snapshot = snapshot_of(state, model, optimizer, ranks_.is_first())] {
        save(folder, snapshot, keep, ranks_);
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
