#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>

#include "base/check.h"
#include "kernels/exponential_race.h"
#include "kernels/softmax_row.h"

namespace fathom::engine {
namespace {

// One row of logits as weights: exp((logit - best) / temperature), the best weighs 1.
class Weights {
 public:
  Weights(std::span<const float> logits, double temperature)
      : logits_(logits),
        best_(kernels::max_row(logits.data(), std::ssize(logits))),
        // Bounded: times the best's distance, which is 0, an infinity would be no number.
        per_nat_(static_cast<float>(
            std::min<double>(1 / temperature, std::numeric_limits<float>::max()))),
        weights_(std::make_unique_for_overwrite<float[]>(logits.size())),
        mass_(
            kernels::exp_row(logits.data(), std::ssize(logits), best_, per_nat_, weights_.get())) {}

  double mass() const { return mass_; }
  float operator[](int32_t id) const { return weights_[id]; }
  const float* data() const { return weights_.get(); }
  int64_t size() const { return std::ssize(logits_); }

  // The best tokens in rank order, ties to the lower id: at least `count` of them and a mass of at
  // least `mass`, or all that are finite. Sorts only what reaches that far, by a histogram of
  // the distances to the best.
  std::vector<int32_t> ranked(int64_t count, double mass) const {
    std::array<int64_t, kBins> counts{};
    std::array<double, kBins> masses{};
    for (size_t id = 0; id < logits_.size(); ++id) {
      const int bin = bin_of(logits_[id]);
      ++counts[bin];
      masses[bin] += weights_[id];
    }
    int last = 0;
    for (; last + 1 < kBins && (counts[last] < count || masses[last] < mass); ++last) {
      counts[last + 1] += counts[last];
      masses[last + 1] += masses[last];
    }
    std::vector<int32_t> ids;
    for (size_t id = 0; id < logits_.size(); ++id)
      if (std::isfinite(logits_[id]) && bin_of(logits_[id]) <= last)
        ids.push_back(static_cast<int32_t>(id));
    std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
      return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
    });
    return ids;
  }

 private:
  static constexpr int kBins = 512;
  static constexpr float kBinsPerNat = 6;  // weights end at exp(-87)

  int bin_of(float logit) const {
    const float distance = (best_ - logit) * per_nat_ * kBinsPerNat;
    return distance < kBins - 1 ? static_cast<int>(distance) : kBins - 1;
  }

  std::span<const float> logits_;
  float best_, per_nat_;
  std::unique_ptr<float[]> weights_;
  double mass_;
};

// The lowest id of the greatest logit; some id if they are not all numbers.
int32_t likeliest(std::span<const float> logits) {
  const float most = kernels::max_row(logits.data(), std::ssize(logits));
  const auto at = std::find(logits.begin(), logits.end(), most);
  return at == logits.end() ? 0 : static_cast<int32_t>(at - logits.begin());
}

// The tokens to draw from, in rank order, and the sum of their weights.
struct Cut {
  std::vector<int32_t> ids;
  double mass = 0;
};

// -1 if no token has weight.
int32_t draw_from_all(const Weights& weights, uint64_t key) {
  return static_cast<int32_t>(kernels::first_to_ring(weights.data(), nullptr, weights.size(), key));
}

int32_t draw_from(const Weights& weights, const std::vector<int32_t>& ids, uint64_t key) {
  std::vector<float> of_ids;
  for (const int32_t id : ids) of_ids.push_back(weights[id]);
  const int64_t place = kernels::first_to_ring(of_ids.data(), ids.data(), std::ssize(ids), key);
  return place < 0 ? -1 : ids[place];
}

// Ids that could be drawn, empty if that is the whole vocabulary.
std::vector<int32_t> mask_of(const Weights& weights, std::vector<int32_t> ids, bool is_cut) {
  if (!is_cut) ids = weights.ranked(weights.size(), 0);
  if (std::ssize(ids) == weights.size()) ids.clear();
  return ids;
}

Cut cut_off(const Weights& weights, const SamplingOptions& options) {
  const bool has_top_k = options.top_k > 0 && options.top_k < weights.size();
  // Without top_k the whole mass is known beforehand; min_p alone may need every token.
  const double wanted_mass = options.top_p < 1 ? options.top_p * weights.mass() : weights.mass();
  Cut cut{has_top_k ? weights.ranked(options.top_k, 0) : weights.ranked(0, wanted_mass), 0};
  double mass = weights.mass();
  if (has_top_k) {
    cut.ids.resize(std::min<size_t>(cut.ids.size(), static_cast<size_t>(options.top_k)));
    mass = 0;
    for (const int32_t id : cut.ids) mass += weights[id];
  }
  size_t kept = 0;
  for (; kept < cut.ids.size(); ++kept) {
    const double weight = weights[cut.ids[kept]];
    if (weight < options.min_p) break;
    if (options.top_p < 1 && cut.mass >= options.top_p * mass) break;
    cut.mass += weight;
  }
  cut.ids.resize(kept);
  return cut;
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
  const float maximum = kernels::max_row(logits.data(), std::ssize(logits));
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
    const auto id = likeliest(logits);
    return {id, 0, with_mask ? std::vector{id} : std::vector<int32_t>()};
  }
  const Weights weights(logits, options.temperature);
  const bool is_cut = options.top_k > 0 || options.top_p < 1 || options.min_p > 0;
  Cut cut;
  if (is_cut) cut = cut_off(weights, options);
  const double mass = is_cut ? cut.mass : weights.mass();
  const uint64_t key = random.next();
  const int32_t drawn = is_cut ? draw_from(weights, cut.ids, key) : draw_from_all(weights, key);
  CHECK(drawn >= 0, "no token can be drawn");
  Draw result{drawn, static_cast<float>(std::log(weights[drawn] / mass)), {}};
  if (with_mask) result.mask = mask_of(weights, std::move(cut.ids), is_cut);
  return result;
}

}  // namespace fathom::engine
