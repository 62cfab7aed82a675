#include "model/draft_divergence.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/grad_mode.h>

namespace fathom::model {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// So that a block's logits, 8 MB of f32 for a vocabulary of 8,192, stay in the third cache.
constexpr int64_t kBlockRows = 256;

struct Sums {
  double divergence = 0, overlap = 0;
};

// Adds a block's rows to the sums; returns q - p.
Tensor add_block(const Tensor& draft, const Tensor& model, const Linear& head,
                 const ops::LinearOptions& options, Sums& sums) {
  const Tensor log_q = ops::linear(draft, head, options).log_softmax(1);
  const Tensor log_p = ops::linear(model, head, options).log_softmax(1);
  const Tensor p = log_p.exp(), q = log_q.exp();
  sums.divergence += (p * (log_p - log_q)).sum(torch::kDouble).item<double>();
  sums.overlap += torch::minimum(p, q).sum(torch::kDouble).item<double>();
  return q - p;
}

// out_MD = dz_MV W_VD.
void multiply(const Tensor& dz, const Tensor& weight, const ops::LinearOptions& options,
              const Tensor& out) {
  kernels::gemm({out.size(0), out.size(1), weight.size(0)}, {dz.data_ptr<float>(), dz.size(1), 1},
                {weight.data_ptr<float>(), weight.size(1), 1}, ops::view2(out), false,
                options.bf16_matmuls ? kernels::Precision::kBF16 : kernels::Precision::kF32);
}

struct DivergenceFunction : torch::autograd::Function<DivergenceFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& draft, const Tensor& model,
                        const Tensor& weight, bool bf16, double* overlap) {
    const ops::LinearOptions options{bf16, false};
    const int64_t num_rows = draft.size(0);
    const double scale = num_rows > 0 ? 1 / static_cast<double>(num_rows) : 0;
    Tensor gradient = torch::empty_like(draft);
    Sums sums;
    for (int64_t begin = 0; begin < num_rows; begin += kBlockRows) {
      const int64_t count = std::min(kBlockRows, num_rows - begin);
      const Tensor dz = add_block(draft.narrow(0, begin, count), model.narrow(0, begin, count),
                                  {weight, {}}, options, sums);
      multiply(dz, weight, options, gradient.narrow(0, begin, count));
    }
    gradient.mul_(scale);
    *overlap = sums.overlap * scale;
    ctx->save_for_backward({gradient});
    return torch::tensor(static_cast<float>(sums.divergence * scale));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {ctx->get_saved_variables()[0] * grads[0], Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

DraftDivergence draft_divergence(const Tensor& draft, const Tensor& model, const Linear& head,
                                 const ops::LinearOptions& options) {
  DraftDivergence result;
  result.loss =
      DivergenceFunction::apply(draft.contiguous(), model.contiguous(), head.weight.detach(),
                                options.bf16_matmuls, &result.overlap);
  return result;
}

}  // namespace fathom::model
