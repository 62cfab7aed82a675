// The lightning indexer, report of V3.2 section 2.1: scores of every key and the selection of the
// top-k, in one pass over the keys.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/array_view.h"
#include "kernels/index_key_pages.h"

namespace fathom::kernels {

// Index scores, DSA eq. (1): I[t,s] = sum_j w[t,j] * relu(q[t,j] . k[s]).
// q_TJX holds query t's J heads one behind another, [T, J * X]; w_TJ; k_SX may be stored as FP8,
// whose scales are part of its values. Query t stands at position S-T+t and sees keys up to it.
struct IndexerInput {
  View2<const float> q_TJX;
  View2<const float> w_TJ;
  IndexKeyPages k_SX;
};

// scores_TS[t][s] = I[t,s]; later keys get -inf. Each score's bits depend on its query and key
// alone. CHECKs shapes. Parallel over T and S; scratch, which a thread keeps: a page of keys, up to
// 64 queries' heads and, on AMX, their scores of the page.
//
// Two kinds of kernels, chosen for each query by its own values and the keys' format: where the
// processor has AVX512-BF16, keys are BF16 or FP8 (one scale a key) and bf16 holds each value of
// the query's heads exactly (e4m3 values, as deploy mode makes them, are so held), products are of
// bf16 pairs, or of tiles where it has AMX, with a form of its own for few heads. They are exact in
// f32, as in the f32 kernel that does the rest: all differ in the order of their sums only. Oracle
// reference::index_scores, relative tolerance 1e-5.
void index_scores(const IndexerInput& input, View2<float> scores_TS);

// keys_T[t]: the k keys of the greatest scores, ascending; all visible ones if they are no more
// than k. Ties go to the lower key. Exactly top_k of index_scores, which are not stored: 2 k of
// them for a query and thread. Parallel over T and, for few queries, over S.
void select_keys(const IndexerInput& input, int64_t k, std::span<std::vector<int32_t>> keys_T);

namespace reference {
void index_scores(const IndexerInput& input, View2<float> scores_TS);
}

}  // namespace fathom::kernels
