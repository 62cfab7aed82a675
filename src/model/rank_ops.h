// Rows that go from rank to rank within the model, with their gradients: the seam between
// model/rank_group and autograd. Every rank runs the same of these ops in the same order; backward
// runs them in reverse on all.
#pragma once

#include <vector>

#include "model/rank_group.h"

namespace fathom::model::ops {

// Rows to each rank and from each, in the order of the ranks.
struct RowExchange {
  std::vector<int64_t> send_counts, receive_counts;
};

// The rows that the ranks send to this one. The gradient goes back the same way.
torch::Tensor exchange_rows(const torch::Tensor& x_MD, const RankGroup& ranks,
                            const RowExchange& counts);

// The rows of all ranks, as many of each. A row's gradient is the sum of what all ranks make of it.
torch::Tensor gather_rows(const torch::Tensor& x_ND, const RankGroup& ranks);

}  // namespace fathom::model::ops
