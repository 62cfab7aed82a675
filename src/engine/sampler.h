// From logits to a token.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/random.h"

namespace fathom::engine {

struct SamplingOptions {
  double temperature = 1.0;  // 0 = greedy, ties to the lower id; up to 2
  double top_p = 1.0;        // (0, 1]
  double min_p = 0;  // [0, 1]: share of the best token's probability that a token must reach
  int top_k = 0;     // 0 = off
  // Taken off the logit of a token that was generated before: once, and for each time; -2 to 2.
  double presence_penalty = 0, frequency_penalty = 0;
  std::map<int32_t, double> logit_bias = {};  // added to a token's logit, -100 to 100
  uint64_t seed = 0;                          // same seed, same prompt: same tokens
  bool logprobs = false;
  int num_top_logprobs = 0;  // 0..20
};

// Throws Error naming the option, its value and its range.
void validate(const SamplingOptions& options);

// log softmax of one row, in double for the sum. out has logits.size() elements.
void log_softmax(std::span<const float> logits, std::span<float> out);

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;  // natural log, of the model's distribution before temperature and truncation
};

// The `count` best of a row of log-probabilities, ties to the lower id.
std::vector<TokenLogprob> best_logprobs(std::span<const float> logprobs, int count);

// Bias and penalties, for the tokens generated so far. Ids of logit_bias lie in the vocabulary.
bool adjusts_logits(const SamplingOptions& options);
void adjust_logits(const SamplingOptions& options, std::span<const int32_t> generated,
                   std::span<float> logits);

// Minus infinity for every token whose bit is not set. Throws Error if none is left.
void keep_allowed(std::span<const uint64_t> allowed, std::span<float> logits);

struct Draw {
  int32_t id = 0;
  // Natural log of the probability it was drawn with: after temperature and truncation; 0 if
  // greedy.
  float logprob = 0;
  // The ids that could be drawn, best first, where that is not the whole vocabulary.
  std::vector<int32_t> mask = {};
};

// Draws from softmax(logits / temperature), cut first to the top_k best, then to the smallest set
// of most probable tokens whose mass reaches top_p, then by min_p. Ties in rank go to the lower id.
// A token at minus infinity is never drawn; at least one must be finite. The mask is filled
// `with_mask` alone. Takes one number of `random`, and none where it is greedy. Draws with the same
// number from rows that differ little mostly give the same token (kernels/exponential_race.h).
Draw draw(std::span<const float> logits, const SamplingOptions& options, base::Random& random,
          bool with_mask = false);

}  // namespace fathom::engine
