#include "model/draft_divergence.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>

#include "base/parallel.h"
#include "kernels/softmax_divergence.h"

namespace fathom::model {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kBlockRows = 256;  // whose logits are there at once, both models'

// What the draft is held against: it stays as it is.
struct Target {
  Tensor model_MD, head_VD;
  ops::LinearOptions options;
};

// Rows [begin, begin + count); writes their gradients, where wanted. The sum over the rows.
kernels::SoftmaxDivergence divergence_of_block(const Tensor& draft_MD, const Target& target,
                                               int64_t begin, int64_t count,
                                               const Tensor& gradient_MD) {
  const auto logits = [&](const Tensor& x_MD) {
    return ops::linear(x_MD.narrow(0, begin, count), {target.head_VD, {}}, target.options);
  };
  const Tensor draft = logits(draft_MD), model = logits(target.model_MD);
  const View2<float> draft_MV = ops::view2(draft), model_MV = ops::view2(model);
  std::vector<kernels::SoftmaxDivergence> of_row(count);
  base::parallel_for(count, 1, [&](int64_t first, int64_t end) {
    for (int64_t m = first; m < end; ++m)
      of_row[m] = kernels::softmax_divergence(draft_MV[m], model_MV[m], draft_MV.cols);
  });
  kernels::SoftmaxDivergence sum;
  for (const auto& row : of_row) {
    sum.divergence += row.divergence;
    sum.overlap += row.overlap;
  }
  if (!gradient_MD.defined()) return sum;
  const View2<float> head = ops::view2(target.head_VD), out = ops::view2(gradient_MD);
  kernels::gemm({count, head.cols, head.rows}, {draft_MV.data, draft_MV.stride, 1},
                {head.data, head.stride, 1}, out.slice_rows(begin, begin + count), false,
                ops::precision_of(target.options.bf16_matmuls));
  return sum;
}

struct DivergenceFunction : torch::autograd::Function<DivergenceFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& draft, const Target& target,
                        bool with_gradient, double* overlap) {
    const int64_t num_rows = draft.size(0);
    const double scale = num_rows > 0 ? 1 / static_cast<double>(num_rows) : 0;
    const Tensor gradient = with_gradient ? torch::empty_like(draft) : Tensor();
    double divergence = 0;
    for (int64_t begin = 0; begin < num_rows; begin += kBlockRows) {
      const auto block = divergence_of_block(draft, target, begin,
                                             std::min(kBlockRows, num_rows - begin), gradient);
      divergence += block.divergence;
      *overlap += block.overlap;
    }
    *overlap *= scale;
    if (with_gradient) ctx->save_for_backward({gradient.mul_(scale)});
    return torch::tensor(static_cast<float>(divergence * scale));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {ctx->get_saved_variables()[0] * grads[0], Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

DraftDivergence draft_divergence(const Tensor& draft, const Tensor& model, const Linear& head,
                                 const ops::LinearOptions& options) {
  const bool with_gradient = torch::GradMode::is_enabled() && draft.requires_grad();
  const Target target{model.detach().contiguous(), head.weight.detach(), options};
  DraftDivergence result;
  result.loss =
      DivergenceFunction::apply(draft.contiguous(), target, with_gradient, &result.overlap);
  return result;
}

}  // namespace fathom::model
