// The lightning indexer's scores and the top-k selection, report of V3.2 section 2.1.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/array_view.h"

namespace fathom::kernels {

// Index scores, DSA eq. (1): I[t,s] = k_scale[s] * sum_j w[t,j] * relu(q[t,j] . k[s]).
// q_TJX holds query t's J heads one behind another, [T, J * X]; w_TJ; k_SX; k_scale_S may be null
// (all ones: unquantised keys). Query t stands at position S-T+t; later keys get -inf.
// CHECKs shapes. Scratch: one tile of keys and 16 queries a thread. Parallel over T; each score's
// bits depend on its query and key alone. Oracle reference::index_scores, relative tolerance 1e-5.
struct IndexScores {
  View2<const float> q_TJX;
  View2<const float> w_TJ;
  View2<const float> k_SX;
  const float* k_scale_S = nullptr;
  View2<float> scores_TS;
};
void index_scores(const IndexScores& io);

// Indices of the k greatest of scores (all of them if k >= size), ascending; ties go to the lower
// index, -0 equals 0, NaN counts as -inf. Exact: a radix selection, three passes at most.
void top_k(std::span<const float> scores, int64_t k, std::vector<int32_t>& indices);

namespace reference {
void index_scores(const IndexScores& io);
}

}  // namespace fathom::kernels
