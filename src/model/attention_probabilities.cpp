#include "model/attention_probabilities.h"

#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <limits>

namespace fathom::model {
namespace {

using torch::Tensor;

constexpr int64_t kQueryBlock = 64;

Tensor heads_of(const Tensor& x, int64_t begin, int64_t count, int64_t num_heads, int64_t dim) {
  return x.detach().narrow(0, begin, count).view({count, num_heads, dim}).transpose(0, 1);
}

Tensor allowed_keys(const ProbabilityBlock& block, int64_t count,
                    const ops::KeySelection& selection) {
  const int64_t num_keys = block.begin + count;
  const Tensor causal = torch::ones({count, num_keys}, torch::kBool).tril(block.begin);
  if (!selection.defined()) return causal;
  const int64_t* const begins =
      selection.begins_N1.data_ptr<int64_t>() + block.segment + block.begin;
  if (begins[0] == begins[count]) return causal;
  Tensor selected = torch::zeros({count, num_keys}, torch::kBool);
  for (int64_t t = 0; t < count; ++t)
    for (int64_t i = begins[t]; i < begins[t + 1]; ++i)
      selected.data_ptr<bool>()[t * num_keys + selection.keys.data_ptr<int32_t>()[i]] = true;
  return selected;
}

}  // namespace

void for_each_probability_block(const AttendedSegments& attended,
                                const ops::KeySelection& selection,
                                const std::function<void(const ProbabilityBlock&)>& body) {
  const torch::NoGradGuard no_grad;
  const auto& shape = attended.shape;
  int64_t segment = 0;
  for (int64_t length : attended.lengths) {
    for (int64_t begin = 0; begin < length; begin += kQueryBlock) {
      const int64_t count = std::min(kQueryBlock, length - begin);
      ProbabilityBlock block{segment, begin, {}, {}, {}, {}};
      block.q_HTD = heads_of(attended.q_NHD, segment + begin, count, shape.num_heads, shape.qk_dim);
      block.k_HSD = heads_of(attended.k_NHD, segment, begin + count, shape.num_heads, shape.qk_dim);
      block.allowed_TS = allowed_keys(block, count, selection);
      block.p_HTS =
          (torch::matmul(block.q_HTD, block.k_HSD.transpose(1, 2)) * shape.scale)
              .masked_fill(block.allowed_TS.logical_not(), -std::numeric_limits<float>::infinity())
              .softmax(-1);
      body(block);
    }
    segment += length;
  }
}

double mean_entropy(const AttendedSegments& attended, const ops::KeySelection& selection) {
  double sum = 0;
  for_each_probability_block(attended, selection, [&](const ProbabilityBlock& block) {
    const Tensor& p = block.p_HTS;
    sum -= (p * p.clamp_min(1e-30).log()).sum().item<double>();
  });
  return sum / static_cast<double>(attended.q_NHD.size(0) * attended.shape.num_heads);
}

}  // namespace fathom::model
