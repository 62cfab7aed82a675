// The optimizer's work and state divided over ranks (ZeRO, stage 1; Rajbhandari et al. 2020): each
// tensor has one owner, which gets the sum of its gradients, updates it and sends it round. Whole
// tensors, since Muon needs whole matrices.
#pragma once

#include <span>
#include <vector>

#include "model/rank_group.h"

namespace fathom::pretrain {

// The owner of each tensor, so that all own about as many elements. A function of its arguments.
std::vector<int> balanced_owners(std::span<const int64_t> num_elements, int num_ranks);

struct OwnedTensor {
  torch::Tensor* tensor = nullptr;
  int owner = 0;
};

// Leaves the sum of the ranks' gradients with the owner and none with the others. Returns for each
// tensor whether any rank had one. Called by all ranks with the same tensors, as share_values is.
std::vector<bool> sum_gradients(std::span<const OwnedTensor> tensors,
                                const model::RankGroup& ranks);

// The owners' values of the tensors marked, to all ranks.
void share_values(std::span<const OwnedTensor> tensors, const std::vector<bool>& is_marked,
                  const model::RankGroup& ranks);

}  // namespace fathom::pretrain
