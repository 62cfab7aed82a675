#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace fathom::engine {
namespace {

struct Candidate {
  int32_t id;
  float logit;
};

bool is_better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// Candidates in rank order, as far as top_k and top_p can reach.
std::vector<Candidate> ranked_candidates(std::span<const float> logits,
                                         const SamplingOptions& options) {
  std::vector<Candidate> candidates(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) candidates[i] = {static_cast<int32_t>(i), logits[i]};
  const size_t keep =
      options.top_k > 0 ? std::min<size_t>(options.top_k, logits.size()) : logits.size();
  if (keep < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<int64_t>(keep),
                     candidates.end(), is_better);
    candidates.resize(keep);
  }
  std::sort(candidates.begin(), candidates.end(), is_better);
  return candidates;
}

}  // namespace

void validate(const SamplingOptions& options) {
  const auto check = [](const char* name, double value, bool is_good, const char* range) {
    if (!is_good) fail("{} is {}; expected {}", name, value, range);
  };
  check("temperature", options.temperature, options.temperature >= 0 && options.temperature <= 2,
        "0 to 2");
  check("top_p", options.top_p, options.top_p > 0 && options.top_p <= 1, "above 0, at most 1");
  check("top_k", options.top_k, options.top_k >= 0, "at least 0 (0 is off)");
  check("min_p", options.min_p, options.min_p >= 0 && options.min_p <= 1, "0 to 1");
  check("presence_penalty", options.presence_penalty, std::abs(options.presence_penalty) <= 2,
        "-2 to 2");
  check("frequency_penalty", options.frequency_penalty, std::abs(options.frequency_penalty) <= 2,
        "-2 to 2");
  for (const auto& [id, bias] : options.logit_bias)
    check("logit_bias", bias, std::abs(bias) <= 100, "-100 to 100");
  check("top_logprobs", options.num_top_logprobs,
        options.num_top_logprobs >= 0 && options.num_top_logprobs <= 20, "0 to 20");
}

void log_softmax(std::span<const float> logits, std::span<float> out) {
  CHECK_EQ(logits.size(), out.size());
  const float maximum = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit) - maximum);
  const double log_sum = maximum + std::log(sum);
  for (size_t i = 0; i < logits.size(); ++i) out[i] = static_cast<float>(logits[i] - log_sum);
}

bool adjusts_logits(const SamplingOptions& options) {
  return options.presence_penalty != 0 || options.frequency_penalty != 0 ||
         !options.logit_bias.empty();
}

void adjust_logits(const SamplingOptions& options, std::span<const int32_t> generated,
                   std::span<float> logits) {
  std::map<int32_t, int> counts;
  for (const int32_t id : generated) ++counts[id];
  for (const auto& [id, count] : counts)
    logits[id] -= static_cast<float>(options.presence_penalty + count * options.frequency_penalty);
  for (const auto& [id, bias] : options.logit_bias) {
    CHECK_LT(static_cast<size_t>(id), logits.size());
    logits[id] += static_cast<float>(bias);
  }
}

int32_t sample(std::span<const float> logits, const SamplingOptions& options,
               base::Random& random) {
  if (options.temperature == 0)
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  const auto candidates = ranked_candidates(logits, options);
  std::vector<double> weights(candidates.size());
  for (size_t i = 0; i < weights.size(); ++i)
    weights[i] = std::exp((static_cast<double>(candidates[i].logit) - candidates[0].logit) /
                          options.temperature);
  double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  if (options.top_p < 1) {
    double mass = 0;
    size_t kept = 0;
    while (kept < weights.size() && mass < options.top_p * total) mass += weights[kept++];
    weights.resize(std::max<size_t>(kept, 1));
    total = mass;
  }
  // The best weighs 1.
  while (weights.back() < options.min_p) {
    total -= weights.back();
    weights.pop_back();
  }
  double left = random.uniform() * total;
  for (size_t i = 0; i < weights.size(); ++i) {
    left -= weights[i];
    if (left < 0) return candidates[i].id;
  }
  return candidates[weights.size() - 1].id;
}

}  // namespace fathom::engine
