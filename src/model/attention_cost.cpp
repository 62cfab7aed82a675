#include "model/attention_cost.h"

#include <algorithm>
#include <functional>

namespace fathom::model {
namespace {

constexpr int64_t kMostCached = int64_t{1} << 24;

// Operations of one query, all heads, with one key.
double masked_pair(const Config& c) {
  return 2.0 * static_cast<double>(c.num_attention_heads * (c.qk_head_dim() + c.v_head_dim));
}

double gathered_pair(const Config& c) {
  return 2.0 *
         static_cast<double>(c.num_attention_heads * (2 * c.kv_lora_rank + c.qk_rope_head_dim));
}

// Of one row through kv_b_proj, in either direction.
double expansion(const Config& c) {
  return 2.0 * static_cast<double>(c.num_attention_heads * c.kv_lora_rank *
                                   (c.qk_nope_head_dim + c.v_head_dim));
}

// Sum over num_queries queries of the keys that each sees, at most `most`.
double num_pairs(int64_t num_queries, int64_t num_cached, int64_t most) {
  const int64_t growing = std::clamp<int64_t>(most - num_cached, 0, num_queries);
  const auto first = static_cast<double>(num_cached + 1), count = static_cast<double>(growing);
  return count * first + count * (count - 1) / 2 +
         static_cast<double>(num_queries - growing) * static_cast<double>(most);
}

// The first number for which something holds that holds from there on; at most kMostCached.
int64_t first_that_holds(const std::function<bool(int64_t)>& holds) {
  int64_t begin = 0, end = kMostCached;
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (holds(middle))
      end = middle;
    else
      begin = middle + 1;
  }
  return begin;
}

}  // namespace

AttentionSeconds attention_seconds(const Config& c, const AttentionRates& rates,
                                   int64_t num_queries, int64_t num_cached) {
  const int64_t num_keys = num_cached + num_queries;
  const double pairs = num_pairs(num_queries, num_cached, num_keys);
  const double scores = 2.0 * static_cast<double>(c.index_n_heads * c.index_head_dim) * pairs;
  const double select = num_keys > c.index_topk ? scores / rates.indexer : 0;
  return {select + static_cast<double>(num_keys) * expansion(c) / rates.expansion +
              pairs * masked_pair(c) / rates.masked,
          select + static_cast<double>(num_queries) * expansion(c) / rates.absorption +
              num_pairs(num_queries, num_cached, c.index_topk) * gathered_pair(c) / rates.gathered};
}

AttentionForm choose_form(const Config& config, const AttentionRates& rates, int64_t num_queries,
                          int64_t num_cached) {
  const auto seconds = attention_seconds(config, rates, num_queries, num_cached);
  return seconds.gathered < seconds.masked ? AttentionForm::kMqa : AttentionForm::kMha;
}

std::optional<int64_t> gathering_crossover(const Config& config, const AttentionRates& rates,
                                           int64_t num_queries) {
  const auto excess = [&](int64_t num_cached) {
    const auto seconds = attention_seconds(config, rates, num_queries, num_cached);
    return seconds.masked - seconds.gathered;
  };
  // Convex in num_cached: each key more costs masking the same, gathering less and less.
  const int64_t lowest = first_that_holds([&](int64_t at) { return excess(at + 1) >= excess(at); });
  if (excess(lowest) > 0) return 0;
  const int64_t crossover =
      first_that_holds([&](int64_t at) { return at > lowest && excess(at) > 0; });
  if (crossover == kMostCached) return {};
  return crossover;
}

std::optional<int64_t> whole_sequence_crossover(const Config& config, const AttentionRates& rates) {
  const double gathered = gathered_pair(config) / rates.gathered;
  const double masked = masked_pair(config) / rates.masked;
  const double expand = expansion(config) / rates.expansion;
  const double absorb = expansion(config) / rates.absorption;
  const auto excess = [&](int64_t at) {
    const auto num_keys = static_cast<double>(at + 1);
    return expand + num_keys * masked - absorb -
           std::min(num_keys, static_cast<double>(config.index_topk)) * gathered;
  };
  // Linear up to index_topk, rising beyond it.
  if (excess(0) > 0 && excess(config.index_topk) > 0) return 0;
  const int64_t lowest = excess(config.index_topk) > 0 ? 0 : config.index_topk;
  const int64_t crossover =
      first_that_holds([&](int64_t at) { return at > lowest && excess(at) > 0; });
  if (crossover == kMostCached) return {};
  return crossover;
}

}  // namespace fathom::model
