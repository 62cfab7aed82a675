// A draw from weights by a race of exponential clocks (the Gumbel-max draw, without logarithms).
#pragma once

#include <cstdint>

namespace fathom::kernels {

// The clock that rings first, where clock i rings at -log(1 - u_i) / weight_V[i] and u_i in [0, 1)
// is number ids[i] (i itself where ids is null) of the random stream `key`: i with the probability
// weight_V[i] / their sum. Ties go to the lower i; -1 if all weights are 0.
//
// u_i does not depend on the weights. So two draws with the same key from distributions whose total
// variation is d give the same id with a probability of at least (1 - d) / (1 + d), and the draw
// from a part of the ids is that from all of them wherever that one fell within the part.
//
// weight_V: finite, none negative. u_i has 52 bits, so that a clock whose u is 0 does not count
// among vocabularies of any size. Allocates nothing, one thread. Reference: the sentence above in
// double; the same id.
int64_t first_to_ring(const float* weight_V, const int32_t* ids, int64_t count, uint64_t key);

}  // namespace fathom::kernels
