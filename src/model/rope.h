// Rotary angles with YaRN (report of V3, section 4.3), shared by MLA and the indexer.
#pragma once

#include "model/config.h"
#include "model/tensor.h"

namespace fathom::model {

// cos and sin of position * frequency, [N, qk_rope_head_dim / 2] f32. They are not scaled:
// YaRN's temperature is in Config::softmax_scale.
struct RopeTable {
  torch::Tensor cos_NR2;
  torch::Tensor sin_NR2;
};

// The qk_rope_head_dim / 2 frequencies. YaRN stretches the slow ones by its factor where the
// context (max_position_embeddings) is longer than the original one.
std::vector<double> rope_frequencies(const Config& config);

RopeTable rope_table(const Config& config, const std::vector<int64_t>& positions_N);

}  // namespace fathom::model
