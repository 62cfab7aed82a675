// What attention over a cache costs in its MHA and in its MQA form (V3.2 report, appendix A), from
// counts of operations and measured rates, and which of them is cheaper where.
#pragma once

#include <cstdint>
#include <optional>

#include "model/config.h"
#include "model/transformer.h"

namespace fathom::model {

// Operations a second, two for a multiply-add, of all threads together. `fathom bench cost`
// measures them; only their ratios decide.
struct AttentionRates {
  double expansion = 0;   // cached rows into keys and values, by kv_b_proj; copies included
  double absorption = 0;  // queries into the latent space and values out of it, by kv_b_proj too
  double masked = 0;      // attention over expanded keys, masked ones computed too
  double gathered = 0;    // attention over latent rows, gathered
  double indexer = 0;     // index scores with the selection
};

// Of one core with AVX512-BF16: nano, chunks of 64, FP8 cache. A choice by them is the same on
// every machine and in every run.
inline constexpr AttentionRates kTypicalRates{155e9, 257e9, 125e9, 101e9, 54e9};

// Of one layer, projections left out: they are the same in both forms.
struct AttentionSeconds {
  double masked = 0, gathered = 0;
};

// num_queries new tokens of one sequence behind num_cached ones. MHA expands the keys and values of
// all of them anew; MQA absorbs each query and sees at most index_topk keys. The indexer is in both
// as soon as there is something to select.
AttentionSeconds attention_seconds(const Config& config, const AttentionRates& rates,
                                   int64_t num_queries, int64_t num_cached);

// The cheaper form of such a pass.
AttentionForm choose_form(const Config& config, const AttentionRates& rates, int64_t num_queries,
                          int64_t num_cached);

// num_cached from which passes of num_queries are cheaper gathered, for good; nothing if that is
// beyond 16 M tokens.
std::optional<int64_t> gathering_crossover(const Config& config, const AttentionRates& rates,
                                           int64_t num_queries);

// The same for single positions of a pass over a whole sequence, where each key is expanded once.
std::optional<int64_t> whole_sequence_crossover(const Config& config, const AttentionRates& rates);

}  // namespace fathom::model
