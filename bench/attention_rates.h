// How fast this machine computes the parts of attention: what the choice between its two forms
// rests on.
#pragma once

#include "model/attention_cost.h"

namespace fathom::bench {

// Of layer 0, `num_queries` together behind 4,096 keys, in serving's precision; a second or two.
model::AttentionRates measure_attention_rates(const model::Model& model, model::CacheFormat format,
                                              int64_t num_queries);

}  // namespace fathom::bench
