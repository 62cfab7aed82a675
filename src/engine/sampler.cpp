#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

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

// Tokens in rank order, sorted as far as they are looked at: seldom beyond the first piece.
class Ranking {
 public:
  explicit Ranking(std::span<const float> logits) : candidates_(logits.size()) {
    for (size_t i = 0; i < logits.size(); ++i)
      candidates_[i] = {static_cast<int32_t>(i), logits[i]};
  }
  int64_t size() const { return std::ssize(candidates_); }
  const Candidate& operator[](int64_t rank) {
    while (rank >= num_sorted_) sort_more();
    return candidates_[rank];
  }

 private:
  void sort_more() {
    const auto begin = candidates_.begin() + num_sorted_;
    const auto end =
        candidates_.begin() + std::min(std::max<int64_t>(64, 4 * num_sorted_), ssize(candidates_));
    std::nth_element(begin, end - 1, candidates_.end(), is_better);
    std::sort(begin, end, is_better);
    num_sorted_ = end - candidates_.begin();
  }

  std::vector<Candidate> candidates_;
  int64_t num_sorted_ = 0;
};

// The first `count` in rank but for those at minus infinity; empty if that is everyone.
std::vector<int32_t> mask_of(Ranking& ranking, int64_t count) {
  std::vector<int32_t> mask;
  for (int64_t i = 0; i < count && std::isfinite(ranking[i].logit); ++i)
    mask.push_back(ranking[i].id);
  if (std::ssize(mask) == ranking.size()) mask.clear();
  return mask;
}

// The tokens to draw from: the first `count` in rank, with the sum of their weights.
struct Cut {
  int64_t count;
  double mass;
};

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

std::vector<TokenLogprob> best_logprobs(std::span<const float> logprobs, int count) {
  std::vector<int32_t> order(logprobs.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int32_t a, int32_t b) {
    return logprobs[a] != logprobs[b] ? logprobs[a] > logprobs[b] : a < b;
  });
  std::vector<TokenLogprob> best;
  for (int i = 0; i < count; ++i) best.push_back({order[i], logprobs[order[i]]});
  return best;
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

void keep_allowed(std::span<const uint64_t> allowed, std::span<float> logits) {
  bool is_any_left = false;
  for (size_t id = 0; id < logits.size(); ++id) {
    const bool is_allowed = id / 64 < allowed.size() && (allowed[id / 64] >> (id % 64) & 1) != 0;
    if (!is_allowed) logits[id] = -std::numeric_limits<float>::infinity();
    is_any_left |= is_allowed;
  }
  if (!is_any_left) fail("the constraint leaves no token of the vocabulary");
}

Draw draw(std::span<const float> logits, const SamplingOptions& options, base::Random& random,
          bool with_mask) {
  if (options.temperature == 0) {
    const auto best = std::max_element(logits.begin(), logits.end());
    const auto id = static_cast<int32_t>(best - logits.begin());
    return {id, 0, with_mask ? std::vector{id} : std::vector<int32_t>()};
  }
  Ranking ranking(logits);
  const float best = ranking[0].logit;
  const auto weight = [&](float logit) {
    return std::exp((static_cast<double>(logit) - best) / options.temperature);
  };
  Cut cut{std::ssize(logits), 0};
  if (options.top_k > 0) cut.count = std::min<int64_t>(options.top_k, cut.count);
  if (cut.count == std::ssize(logits))
    for (const float logit : logits) cut.mass += weight(logit);
  else
    for (int64_t i = 0; i < cut.count; ++i) cut.mass += weight(ranking[i].logit);
  if (options.top_p < 1 || options.min_p > 0) {
    Cut kept{0, 0};
    while (kept.count < cut.count && kept.mass < options.top_p * cut.mass) {
      const double w = weight(ranking[kept.count].logit);
      if (w < options.min_p) break;  // the best weighs 1
      kept.mass += w;
      ++kept.count;
    }
    cut = kept;
  }
  Draw drawn{ranking[0].id, 0, {}};
  double left = random.uniform() * cut.mass;
  for (int64_t i = 0; i < cut.count; ++i) {
    const double w = weight(ranking[i].logit);
    if (w == 0) break;  // nothing further back can be drawn
    drawn = {ranking[i].id, static_cast<float>(std::log(w / cut.mass)), {}};
    left -= w;
    if (left < 0) break;
  }
  if (with_mask) drawn.mask = mask_of(ranking, cut.count);
  return drawn;
}

}  // namespace fathom::engine
