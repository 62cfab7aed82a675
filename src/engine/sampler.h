// From logits to a token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/random.h"

namespace fathom::engine {

struct SamplingOptions {
  double temperature = 1.0;  // 0 = greedy, ties to the lower id; up to 2
  double top_p = 1.0;        // (0, 1]
  int top_k = 0;             // 0 = off
  uint64_t seed = 0;         // same seed, same prompt: same tokens
  bool logprobs = false;
  int num_top_logprobs = 0;  // 0..20
};

// Throws Error naming the option, its value and its range.
void validate(const SamplingOptions& options);

// log softmax of one row, in double for the sum. out has logits.size() elements.
void log_softmax(std::span<const float> logits, std::span<float> out);

// Draws from softmax(logits / temperature), cut first to the top_k best, then to the smallest set
// of most probable tokens whose mass reaches top_p. Ties in rank go to the lower id.
int32_t sample(std::span<const float> logits, const SamplingOptions& options, base::Random& random);

}  // namespace fathom::engine
