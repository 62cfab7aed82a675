// AdamW for vectors, embeddings and routers; Muon or AdamW for matrices.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/rank_group.h"
#include "model/weights.h"
#include "pretrain/recipe.h"
#include "pretrain/sharding.h"

namespace fathom::pretrain {

// Muon's direction (Jordan et al. 2024): five Newton-Schulz steps towards the nearest
// semi-orthogonal matrix; products of bf16, sums in f32. Serial. update_MN in and out, row-major.
void orthogonalise(int64_t rows, int64_t cols, float* update_MN);

// The decay of a kind of tensor, decoupled: times the learning rate, of the weight itself.
double weight_decay_of(model::Role role, const OptimizerRecipe& recipe);

class Optimizer {
 public:
  // The slots' tensors must outlive the optimizer. Each of the ranks updates its share of them and
  // keeps the moments of those alone.
  Optimizer(std::vector<model::TensorSlot> slots, OptimizerRecipe recipe,
            model::RankGroup ranks = {});

  // Norms of all gradients of a step, before clipping.
  struct Norms {
    double model = 0;
    double indexer = 0;
  };
  // Sums the gradients over the ranks, clips them to the global norm, updates every tensor that has
  // one and frees the gradients. The indexers' are clipped by their own norm: through a common one
  // their loss would move the main model. `step` counts from 1. Bits do not depend on the thread
  // count. Every rank calls it.
  Norms step(double learning_rate, int64_t step);

  // The first of the tensors trained that holds a value which is not finite. The same on every
  // rank.
  std::optional<std::string> non_finite_weight() const;

  struct State {
    std::string name;
    torch::Tensor tensor;
  };
  // Moments of all tensors that this rank has updated, in a fixed order. restore() takes them back,
  // and leaves out what is another rank's.
  std::vector<State> state() const;
  void restore(const std::vector<State>& state);

 private:
  struct Slot {
    model::TensorSlot slot;
    bool is_muon = false;
    bool is_indexer = false;
    torch::Tensor first_moment, second_moment;  // undefined until the first update
  };
  Norms gradient_norms() const;
  bool is_mine(size_t slot) const { return owned_[slot].owner == ranks_.rank(); }
  void update(Slot& slot, double learning_rate, int64_t step, double gradient_scale) const;

  std::vector<Slot> slots_;
  std::vector<OwnedTensor> owned_;  // of each slot
  OptimizerRecipe recipe_;
  model::RankGroup ranks_;
};

}  // namespace fathom::pretrain
