#include "model/key_rule.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "base/parallel.h"
#include "base/random.h"
#include "kernels/top_k.h"
#include "model/attention_probabilities.h"

namespace fathom::model {
namespace {

using Keys = std::vector<int32_t>;

Keys window_keys(int64_t position, int64_t top_k) {
  const int64_t count = std::min(top_k, position + 1);
  Keys keys(count);
  std::iota(keys.begin(), keys.end(), static_cast<int32_t>(position + 1 - count));
  return keys;
}

// Every subset of that size is as likely (Floyd's algorithm).
Keys random_keys(const KeyRuleInput& in, int64_t position) {
  const int64_t num_visible = position + 1;
  if (num_visible <= in.top_k) return window_keys(position, in.top_k);
  base::Random random(in.seed,
                      (static_cast<uint64_t>(in.layer) << 32) + static_cast<uint64_t>(position));
  std::vector<uint8_t> is_chosen(num_visible);
  for (int64_t last = num_visible - in.top_k; last < num_visible; ++last) {
    const uint64_t drawn = random.below(static_cast<uint64_t>(last) + 1);
    is_chosen[is_chosen[drawn] ? static_cast<uint64_t>(last) : drawn] = 1;
  }
  Keys keys;
  for (int64_t s = 0; s < num_visible; ++s)
    if (is_chosen[s]) keys.push_back(static_cast<int32_t>(s));
  return keys;
}

void oracle_keys(const KeyRuleInput& in, std::span<const int64_t> lengths,
                 std::vector<Keys>& keys_N) {
  for_each_probability_block(
      {in.q_NHD, in.k_NHD, in.shape, lengths}, {}, [&](const ProbabilityBlock& block) {
        const torch::Tensor p_TS = block.p_HTS.sum(0).contiguous();
        const int64_t count = p_TS.size(0), num_keys = p_TS.size(1);
        base::parallel_for(count, 8, [&](int64_t begin, int64_t end) {
          for (int64_t t = begin; t < end; ++t)
            kernels::top_k(
                {p_TS.data_ptr<float>() + t * num_keys, static_cast<size_t>(block.begin + t + 1)},
                in.top_k, keys_N[block.segment + block.begin + t]);
        });
      });
}

}  // namespace

ops::KeySelection select_by_rule(const KeyRuleInput& in, std::span<const int64_t> lengths) {
  CHECK(in.rule != KeyRule::kIndexer, "the indexer selects by itself: select_in_segments");
  const auto longest = std::max_element(lengths.begin(), lengths.end());
  if (longest == lengths.end() || *longest <= in.top_k) return {};
  std::vector<Keys> keys_N(std::accumulate(lengths.begin(), lengths.end(), int64_t{0}));
  if (in.rule == KeyRule::kOracle) oracle_keys(in, lengths, keys_N);
  int64_t begin = 0;
  for (int64_t length : lengths) {
    const auto keys_T = std::span(keys_N).subspan(begin, length);
    begin += length;
    if (length <= in.top_k) {
      std::fill(keys_T.begin(), keys_T.end(), Keys());
    } else if (in.rule != KeyRule::kOracle) {
      base::parallel_for(length, 64, [&](int64_t first, int64_t last) {
        for (int64_t t = first; t < last; ++t)
          keys_T[t] = in.rule == KeyRule::kWindow ? window_keys(t, in.top_k) : random_keys(in, t);
      });
    }
  }
  return ops::join_keys(keys_N);
}

}  // namespace fathom::model
