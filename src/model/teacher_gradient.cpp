#include "model/teacher_gradient.h"

#include <torch/csrc/autograd/custom_function.h>

#include <limits>
#include <vector>

#include "model/attention_probabilities.h"

namespace fathom::model::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// log softmax of the index scores of the block's queries, eq. (1), over the allowed keys.
Tensor log_student(const IndexerLossStudent& student, const ProbabilityBlock& block) {
  const int64_t rows = block.allowed_TS.size(0), num_keys = block.allowed_TS.size(1);
  const int64_t heads = student.w_NJ.size(1), dim = student.k_SX.size(1);
  const int64_t first = block.segment + block.begin;
  const Tensor q_JTX =
      student.q_NJX.narrow(0, first, rows).view({rows, heads, dim}).transpose(0, 1);
  const Tensor k_XS = student.k_SX.narrow(0, block.segment, num_keys).transpose(0, 1);
  const Tensor w_JT1 = student.w_NJ.narrow(0, first, rows).transpose(0, 1).unsqueeze(2);
  return (torch::matmul(q_JTX, k_XS).relu() * w_JT1)
      .sum(0)
      .masked_fill(block.allowed_TS.logical_not(), -std::numeric_limits<float>::infinity())
      .log_softmax(-1);
}

// dL/dscore_HTS times N and the heads' number.
Tensor score_gradient(const IndexerLossStudent& student, const ProbabilityBlock& block) {
  const Tensor log_p = block.p_HTS.mean(0).clamp_min(1e-30).log();
  const Tensor excess_TS =
      (log_p - log_student(student, block)).masked_fill(block.allowed_TS.logical_not(), 0.0);
  const Tensor mean_HT1 = (block.p_HTS * excess_TS).sum(-1, true);
  return block.p_HTS * (excess_TS - mean_HT1);
}

struct TeacherGradientFunction : Function<TeacherGradientFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k,
                        const kernels::AttentionShape& shape, const IndexerLossStudent& student,
                        const std::vector<int64_t>& lengths, const KeySelection& selection) {
    const auto tokens = static_cast<double>(q.size(0));
    const double factor = shape.scale / (tokens * static_cast<double>(shape.num_heads));
    Tensor dq = torch::zeros_like(q), dk = torch::zeros_like(k);
    const auto add = [&](const Tensor& part_HTD, int64_t begin, Tensor& total) {
      const int64_t rows = part_HTD.size(1);
      total.narrow(0, begin, rows).add_(part_HTD.transpose(0, 1).reshape({rows, -1}), factor);
    };
    for_each_probability_block(
        {q, k, shape, lengths}, selection, [&](const ProbabilityBlock& block) {
          const Tensor dscore_HTS = score_gradient(student, block);
          add(torch::matmul(dscore_HTS, block.k_HSD), block.segment + block.begin, dq);
          add(torch::matmul(dscore_HTS.transpose(1, 2), block.q_HTD), block.segment, dk);
        });
    ctx->save_for_backward({dq, dk});
    return torch::zeros({});
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {saved[0] * grads[0], saved[1] * grads[0], Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor teacher_gradient(const IndexerLossStudent& student, const IndexerLossTeacher& teacher,
                        std::span<const int64_t> segment_lengths, const KeySelection& selection) {
  const IndexerLossStudent detached{student.q_NJX.detach().contiguous(), student.w_NJ.detach(),
                                    student.k_SX.detach().contiguous()};
  return TeacherGradientFunction::apply(
      teacher.q.contiguous(), teacher.k.contiguous(), teacher.shape, detached,
      std::vector<int64_t>(segment_lengths.begin(), segment_lengths.end()), selection);
}

}  // namespace fathom::model::ops
