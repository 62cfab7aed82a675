// One MoE layer of V3.2 at its true shape with random FP8 weights, and caches full of random rows.
#pragma once

#include "model/transformer.h"

namespace fathom::bench {

// num_experts: a multiple of 8 from 32 on; 256 take 11.3 GB. Throws Error if there is too little
// memory. A decoded token reads eight of them and the shared one, however many there are.
model::Model random_real_layer(int64_t num_experts);

// Appends `count` tokens to every layer: 1,024 different rows repeated.
void fill(model::KvCache& cache, int64_t count);

// Bytes of FP8 weights that one decoded token reads: attention, router, shared and routed experts.
int64_t weight_bytes_per_token(const model::Config& config);

}  // namespace fathom::bench
