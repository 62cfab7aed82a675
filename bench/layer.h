// One whole MoE layer of V3.2 at its true shape, with random FP8 weights: 256 experts take 11.3 GB.
#pragma once

#include <cstdint>
#include <vector>

#include "base/json.h"

namespace fathom::bench {

struct LayerOptions {
  std::vector<int64_t> contexts = {0, 4096, 16384, 65536};
  int num_threads = 0;  // 0: one a core
  int64_t num_experts = 256;
  int64_t prefill_tokens = 64;
};

// For each context (tokens in an FP8 cache before the measured ones): decode_ms of one token,
// prefill_ms a token of prefill_tokens at once, deploy numerics, MQA form; the bytes of weights
// that one decoded token reads, and their rate's share of the machine's measured read bandwidth.
// Throws Error if there is too little memory.
Json measure_layer(const LayerOptions& options);

}  // namespace fathom::bench
