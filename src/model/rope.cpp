#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace fathom::model {
namespace {

// The (fractional) frequency index that turns `rotations` times over the original context.
double correction_index(const Config& config, double rotations) {
  const auto length = static_cast<double>(config.rope_scaling->original_max_position_embeddings);
  return static_cast<double>(config.qk_rope_head_dim) *
         std::log(length / (rotations * 2 * std::numbers::pi)) / (2 * std::log(config.rope_theta));
}

}  // namespace

std::vector<double> rope_frequencies(const Config& config) {
  const int64_t half = config.qk_rope_head_dim / 2;
  std::vector<double> frequencies(half);
  for (int64_t i = 0; i < half; ++i)
    frequencies[i] =
        std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / config.qk_rope_head_dim);
  const auto& scaling = config.rope_scaling;
  if (!scaling || config.max_position_embeddings <= scaling->original_max_position_embeddings)
    return frequencies;
  const double last = static_cast<double>(config.qk_rope_head_dim - 1);
  const double low = std::max(std::floor(correction_index(config, scaling->beta_fast)), 0.0);
  double high = std::min(std::ceil(correction_index(config, scaling->beta_slow)), last);
  if (low == high) high += 0.001;
  for (int64_t i = 0; i < half; ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] *= ramp / scaling->factor + (1 - ramp);
  }
  return frequencies;
}

RopeTable rope_table(const Config& config, const std::vector<int64_t>& positions) {
  const auto frequencies = rope_frequencies(config);
  const auto rows = static_cast<int64_t>(positions.size());
  const auto half = static_cast<int64_t>(frequencies.size());
  RopeTable table{torch::empty({rows, half}), torch::empty({rows, half})};
  float* cos = table.cos_NR2.data_ptr<float>();
  float* sin = table.sin_NR2.data_ptr<float>();
  for (int64_t position : positions) {
    for (double frequency : frequencies) {
      const double angle = static_cast<double>(position) * frequency;
      *cos++ = static_cast<float>(std::cos(angle));
      *sin++ = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

}  // namespace fathom::model
