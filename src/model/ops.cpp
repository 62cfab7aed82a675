#include "model/ops.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <numeric>

#include "base/parallel.h"
#include "kernels/fp8.h"
#include "kernels/linear_cross_entropy.h"

namespace fathom::model::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

bool needs_gradient(std::initializer_list<Tensor> tensors) {
  if (!torch::GradMode::is_enabled()) return false;
  for (const Tensor& tensor : tensors)
    if (tensor.defined() && tensor.requires_grad()) return true;
  return false;
}

kernels::Strided rows_of(const Tensor& x) { return {x.data_ptr<float>(), x.size(-1), 1}; }
kernels::Strided transpose_of(const Tensor& x) { return {x.data_ptr<float>(), 1, x.size(-1)}; }

// a [M,K] b [K,N] in any orientation.
Tensor gemm(const kernels::GemmShape& shape, kernels::Strided a, kernels::Strided b, bool bf16) {
  Tensor c = torch::empty({shape.m, shape.n});
  kernels::gemm(shape, a, b, view2(c), false, precision_of(bf16));
  return c;
}

Tensor linear_forward(const Tensor& x, const kernels::WeightView& w,
                      kernels::Precision precision = kernels::Precision::kF32) {
  Tensor y = torch::empty({x.size(0), w.rows});
  kernels::linear(view2(x), w, view2(y), precision);
  return y;
}

struct LinearFunction : Function<LinearFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, bool bf16) {
    ctx->save_for_backward({x, weight});
    ctx->saved_data["bf16"] = bf16;
    if (!bf16) return linear_forward(x, weight_view({weight, {}}));
    return gemm({x.size(0), weight.size(0), x.size(1)}, rows_of(x), transpose_of(weight), true);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const bool bf16 = ctx->saved_data["bf16"].toBool();
    const Tensor dy = grads[0].contiguous();
    const Tensor &x = saved[0], &weight = saved[1];
    const int64_t m = x.size(0), k = x.size(1), n = weight.size(0);
    Tensor dx, dw;
    if (ctx->needs_input_grad(0)) dx = gemm({m, k, n}, rows_of(dy), rows_of(weight), bf16);
    if (ctx->needs_input_grad(1)) dw = gemm({n, k, m}, transpose_of(dy), rows_of(x), bf16);
    return {dx, dw, Tensor()};
  }
};

struct RmsNormFunction : Function<RmsNormFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, double eps) {
    Tensor y = torch::empty_like(x), inverse_rms = torch::empty({x.size(0)});
    kernels::rms_norm(view2(x), weight.data_ptr<float>(), static_cast<float>(eps), view2(y),
                      inverse_rms.data_ptr<float>());
    ctx->save_for_backward({x, weight, inverse_rms});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor dy = grads[0].contiguous();
    Tensor dx = torch::empty_like(saved[0]), dweight = torch::empty_like(saved[1]);
    kernels::rms_norm_backward(view2(saved[0]), saved[1].data_ptr<float>(),
                               saved[2].data_ptr<float>(), view2(dy), view2(dx),
                               dweight.data_ptr<float>());
    return {dx, dweight, Tensor()};
  }
};

struct SwigluFunction : Function<SwigluFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up) {
    Tensor y = torch::empty_like(gate);
    kernels::swiglu(view2(gate), view2(up), view2(y));
    ctx->save_for_backward({gate, up});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    Tensor dgate = torch::empty_like(saved[0]), dup = torch::empty_like(saved[1]);
    const Tensor dy = grads[0].contiguous();
    kernels::swiglu_backward(view2(saved[0]), view2(saved[1]), view2(dy), view2(dgate), view2(dup));
    return {dgate, dup};
  }
};

struct SigmoidFunction : Function<SigmoidFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x) {
    Tensor y = torch::empty_like(x);
    kernels::sigmoid(view2(x), view2(y));
    ctx->save_for_backward({y});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor y = ctx->get_saved_variables()[0];
    return {grads[0] * y * (1 - y)};
  }
};

struct SoftmaxFunction : Function<SoftmaxFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x) {
    Tensor y = torch::empty_like(x);
    kernels::softmax(view2(x), view2(y));
    ctx->save_for_backward({y});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor y = ctx->get_saved_variables()[0];
    const Tensor weighted = grads[0] * y;
    return {weighted - y * weighted.sum(-1, true)};
  }
};

Tensor turned(const Tensor& x, const Tensor& cos, const Tensor& sin, const kernels::Rope& options) {
  Tensor y = x.clone(torch::MemoryFormat::Contiguous);
  kernels::rope(options, view2(cos), view2(sin), view2(y));
  return y;
}

struct RopeFunction : Function<RopeFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin,
                        const kernels::Rope& options) {
    ctx->save_for_backward({cos, sin});
    ctx->saved_data["options"] =
        std::vector<int64_t>{options.num_heads, options.head_dim, options.rope_begin,
                             options.rope_dim, options.interleaved};
    return turned(x, cos, sin, options);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto o = ctx->saved_data["options"].toIntVector();
    const kernels::Rope inverse{o[0], o[1], o[2], o[3], o[4] != 0, true};
    return {turned(grads[0], saved[0], saved[1], inverse), Tensor(), Tensor(), Tensor()};
  }
};

Tensor gathered(const Tensor& x, const Tensor& index) {
  Tensor out = torch::empty({index.numel(), x.size(1)});
  kernels::gather_rows(view2(x), index.data_ptr<int64_t>(), view2(out));
  return out;
}

Tensor combined(const Tensor& x, const Tensor& slot_NK, const float* weight) {
  Tensor out = torch::empty({slot_NK.size(0), x.size(1)});
  kernels::combine_rows(view2(x), slot_NK.data_ptr<int64_t>(), slot_NK.size(1), weight, view2(out));
  return out;
}

struct GatherFunction : Function<GatherFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& token_of_slot,
                        const Tensor& slot_of_pair) {
    ctx->save_for_backward({slot_of_pair});
    return gathered(x, token_of_slot);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor slot_of_pair = ctx->get_saved_variables()[0];
    return {combined(grads[0].contiguous(), slot_of_pair, nullptr), Tensor(), Tensor()};
  }
};

struct CombineFunction : Function<CombineFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& y, const Tensor& weight,
                        const Tensor& token_of_slot, const Tensor& slot_of_pair) {
    ctx->save_for_backward({y, weight, token_of_slot, slot_of_pair});
    return combined(y, slot_of_pair, weight.data_ptr<float>());
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor dout = grads[0].contiguous();
    const Tensor slot = saved[3].flatten();
    // dy[slot] = weight * dout[token]; dweight = y[slot] . dout[token].
    Tensor dout_of_slot = gathered(dout, saved[2]);
    Tensor dweight_of_slot = (dout_of_slot * saved[0]).sum(1);
    Tensor weight_of_slot = torch::empty({slot.numel()});
    weight_of_slot.index_put_({slot}, saved[1].flatten());
    Tensor dweight = dweight_of_slot.index_select(0, slot).view_as(saved[1]);
    return {dout_of_slot.mul_(weight_of_slot.unsqueeze(1)), dweight, Tensor(), Tensor()};
  }
};

float sum_of_chosen(const float* scores, const int64_t* index, int64_t count) {
  float sum = 0;
  for (int64_t j = 0; j < count; ++j) sum += scores[index[j]];
  return sum;
}

struct ExpertWeightsFunction : Function<ExpertWeightsFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& scores, const Tensor& index,
                        bool normalises, double factor) {
    ctx->save_for_backward({scores, index});
    ctx->saved_data["normalises"] = normalises;
    ctx->saved_data["factor"] = factor;
    return chosen_weights(scores, index, normalises, factor);
  }

  static Tensor chosen_weights(const Tensor& scores, const Tensor& index, bool normalises,
                               double factor) {
    Tensor weights = torch::empty(index.sizes());
    const View2<float> from = view2(scores), to = view2(weights);
    const int64_t* chosen = index.data_ptr<int64_t>();
    for (int64_t n = 0; n < to.rows; ++n, chosen += to.cols) {
      const float divisor = normalises ? sum_of_chosen(from[n], chosen, to.cols) : 1;
      const float scale = static_cast<float>(factor) / divisor;
      for (int64_t j = 0; j < to.cols; ++j) to[n][j] = from[n][chosen[j]] * scale;
    }
    return weights;
  }

  // d score_j = factor / sum * (dw_j - sum_i dw_i score_i / sum); without the division factor *
  // dw_j.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const bool normalises = ctx->saved_data["normalises"].toBool();
    const auto factor = static_cast<float>(ctx->saved_data["factor"].toDouble());
    const Tensor dweights = grads[0].contiguous();
    Tensor dscores = torch::zeros_like(saved[0]);
    const View2<float> scores = view2(saved[0]), dw = view2(dweights), ds = view2(dscores);
    const int64_t* chosen = saved[1].data_ptr<int64_t>();
    for (int64_t n = 0; n < dw.rows; ++n, chosen += dw.cols) {
      float sum = 1, mean = 0;
      if (normalises) {
        sum = sum_of_chosen(scores[n], chosen, dw.cols);
        for (int64_t j = 0; j < dw.cols; ++j) mean += dw[n][j] * scores[n][chosen[j]] / sum;
      }
      for (int64_t j = 0; j < dw.cols; ++j) ds[n][chosen[j]] = factor / sum * (dw[n][j] - mean);
    }
    return {dscores, Tensor(), Tensor(), Tensor()};
  }
};

struct CrossEntropyFunction : Function<CrossEntropyFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const Tensor& targets, bool bf16, bool with_gradients) {
    const int64_t num_targets = (targets >= 0).sum().item<int64_t>();
    const float scale = num_targets > 0 ? 1.0f / static_cast<float>(num_targets) : 0.0f;
    std::vector<double> losses(x.size(0));
    kernels::LinearCrossEntropy io{.x_MD = view2(x),
                                   .head_VD = view2(weight),
                                   .target_M = targets.data_ptr<int64_t>(),
                                   .loss_M = losses.data(),
                                   .gradient_scale = scale,
                                   .precision = precision_of(bf16)};
    Tensor dx, dw;
    if (with_gradients) {
      dx = torch::empty_like(x);
      dw = torch::empty_like(weight);
      io.dx_MD = view2(dx);
      io.dhead_VD = view2(dw);
    }
    kernels::linear_cross_entropy(io);
    ctx->save_for_backward({dx, dw});
    const double total = std::accumulate(losses.begin(), losses.end(), 0.0);
    return torch::tensor(static_cast<float>(total * scale));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {saved[0] * grads[0], saved[1] * grads[0], Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

View2<float> view2(const Tensor& x) {
  TORCH_CHECK(x.scalar_type() == torch::kFloat32 && x.is_contiguous(), "contiguous f32 expected");
  const int64_t cols = x.size(-1);
  return View2<float>(x.data_ptr<float>(), cols == 0 ? 0 : x.numel() / cols, cols);
}

kernels::WeightView weight_view(const Linear& linear) {
  const Tensor& w = linear.weight;
  CHECK(w.defined() && w.is_contiguous() && w.dim() == 2);
  kernels::WeightView view{
      kernels::WeightFormat::kF32, w.data_ptr(), w.size(0), w.size(1), nullptr, 0};
  switch (w.scalar_type()) {
    case torch::kFloat32:
      break;
    case torch::kBFloat16:
      view.format = kernels::WeightFormat::kBF16;
      break;
    case torch::kHalf:
      view.format = kernels::WeightFormat::kF16;
      break;
    case torch::kByte:
      view.format = kernels::WeightFormat::kE4M3;
      CHECK(linear.scale_inv.defined());
      view.scale_inv = linear.scale_inv.data_ptr<float>();
      break;
    default:
      CHECK(false, "weight of dtype {}", c10::toString(w.scalar_type()));
  }
  return view;
}

namespace {

bool is_quantised(const Linear& w, const LinearOptions& options) {
  return options.quantise_input && w.weight.scalar_type() == torch::kByte;
}

// What went through FP8 is exact in bf16.
kernels::Precision product_precision(const Linear& w, const LinearOptions& options) {
  return precision_of(options.bf16_matmuls || is_quantised(w, options));
}

bool takes_gemm(const Linear& w, const LinearOptions& options) {
  return options.bf16_matmuls && w.weight.scalar_type() == torch::kFloat32;
}

}  // namespace

Tensor linear(const Tensor& x, const Linear& w, const LinearOptions& options) {
  if (needs_gradient({x, w.weight}))
    return LinearFunction::apply(x.contiguous(), w.weight, options.bf16_matmuls);
  const Tensor input = through_fp8(x, w, options);
  if (takes_gemm(w, options))
    return gemm({input.size(0), w.weight.size(0), input.size(1)}, rows_of(input),
                transpose_of(w.weight), true);
  return linear_forward(input, weight_view(w), product_precision(w, options));
}

Tensor through_fp8(const Tensor& x, const Linear& w, const LinearOptions& options) {
  Tensor input = x.contiguous();
  if (!is_quantised(w, options)) return input;
  Tensor rounded = torch::empty_like(input);
  kernels::round_through_fp8(view2(input), view2(rounded));
  return rounded;
}

bool goes_together(const Linear& w, const LinearOptions& options) {
  return !torch::GradMode::is_enabled() && !takes_gemm(w, options);
}

std::vector<Tensor> linear_group(const Tensor& x, std::initializer_list<const Linear*> weights,
                                 const LinearOptions& options) {
  const Linear& first = **weights.begin();
  const bool together = std::all_of(weights.begin(), weights.end(), [&](const Linear* w) {
    return goes_together(*w, options) && w->weight.scalar_type() == first.weight.scalar_type();
  });
  std::vector<Tensor> outputs;
  if (!together) {
    for (const Linear* w : weights) outputs.push_back(linear(x, *w, options));
    return outputs;
  }
  const Tensor input = through_fp8(x, first, options);
  std::vector<kernels::LinearProduct> products;
  for (const Linear* w : weights) {
    outputs.push_back(torch::empty({input.size(0), w->weight.size(0)}));
    products.push_back({view2(input), weight_view(*w), view2(outputs.back())});
  }
  kernels::linear_group(products, product_precision(first, options));
  return outputs;
}

namespace {

// Numbers that pass through SwiGLU on one thread before another is worth waking.
constexpr int64_t kGrainNumbers = 4096;

// SwiGLU of each pair, in the gate's place, then through FP8 if asked: all their rows in one loop.
void pass_gates(std::span<const View2<float>> gates, std::span<const View2<float>> ups,
                bool quantises) {
  std::vector<int64_t> ends;
  int64_t num_rows = 0, size = 0;
  for (const View2<float>& gate : gates) {
    ends.push_back(num_rows += gate.rows);
    size += gate.rows * gate.cols;
  }
  const int64_t width = std::max<int64_t>(1, size / std::max<int64_t>(1, num_rows));
  base::parallel_for(num_rows, std::max<int64_t>(1, kGrainNumbers / width),
                     [&](int64_t begin, int64_t end) {
                       auto i = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin();
                       for (int64_t row = begin; row < end; row = ends[i++]) {
                         const int64_t first = ends[i] - gates[i].rows;
                         const auto rows = [&](const View2<float>& of) {
                           return of.slice_rows(row - first, std::min(end, ends[i]) - first);
                         };
                         kernels::swiglu(rows(gates[i]), rows(ups[i]), rows(gates[i]));
                         if (quantises) kernels::round_through_fp8(rows(gates[i]), rows(gates[i]));
                       }
                     });
}

}  // namespace

void mlp_group(std::span<const MlpRows> mlps, const LinearOptions& options) {
  if (mlps.empty()) return;
  const Linear& first = mlps.front().weights->gate_proj;
  const auto hidden_size = [](const MlpRows& mlp) {
    return mlp.x_MD.rows * mlp.weights->gate_proj.weight.size(0);
  };
  int64_t size = 0;
  for (const MlpRows& mlp : mlps) size += hidden_size(mlp);
  const Tensor hidden = torch::empty({2, size});
  std::vector<View2<float>> gates, ups;
  std::vector<kernels::LinearProduct> products;
  float* next = hidden.data_ptr<float>();
  for (const MlpRows& mlp : mlps) {
    const int64_t width = mlp.weights->gate_proj.weight.size(0);
    gates.emplace_back(next, mlp.x_MD.rows, width);
    ups.emplace_back(next + size, mlp.x_MD.rows, width);
    next += hidden_size(mlp);
    products.push_back({mlp.x_MD, weight_view(mlp.weights->gate_proj), gates.back()});
    products.push_back({mlp.x_MD, weight_view(mlp.weights->up_proj), ups.back()});
  }
  kernels::linear_group(products, product_precision(first, options));
  pass_gates(gates, ups, is_quantised(first, options));
  products.clear();
  for (size_t i = 0; i < mlps.size(); ++i)
    products.push_back({gates[i], weight_view(mlps[i].weights->down_proj), mlps[i].y_MD});
  kernels::linear_group(products, product_precision(first, options));
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const Tensor input = x.contiguous();
  if (needs_gradient({x, weight})) return RmsNormFunction::apply(input, weight, eps);
  Tensor y = torch::empty_like(input);
  kernels::rms_norm(view2(input), weight.data_ptr<float>(), static_cast<float>(eps), view2(y),
                    nullptr);
  return y;
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  if (needs_gradient({gate, up})) return SwigluFunction::apply(gate, up);
  Tensor y = torch::empty_like(gate);
  kernels::swiglu(view2(gate), view2(up), view2(y));
  return y;
}

Tensor sigmoid(const Tensor& x) {
  if (needs_gradient({x})) return SigmoidFunction::apply(x.contiguous());
  Tensor y = x.clone(torch::MemoryFormat::Contiguous);
  kernels::sigmoid(view2(y), view2(y));
  return y;
}

Tensor softmax(const Tensor& x) {
  if (needs_gradient({x})) return SoftmaxFunction::apply(x.contiguous());
  Tensor y = x.clone(torch::MemoryFormat::Contiguous);
  kernels::softmax(view2(y), view2(y));
  return y;
}

Tensor rope(Tensor x, const Tensor& cos, const Tensor& sin, const kernels::Rope& options) {
  if (needs_gradient({x})) return RopeFunction::apply(x, cos, sin, options);
  const bool is_ours = x.use_count() == 1 && x.storage().use_count() == 1 && x.is_contiguous();
  if (!is_ours) return turned(x, cos, sin, options);
  kernels::rope(options, view2(cos), view2(sin), view2(x));
  return x;
}

ExpertPlan plan_experts(const Tensor& expert_index, int64_t num_experts) {
  const int64_t tokens = expert_index.size(0), k = expert_index.size(1);
  ExpertPlan plan{std::vector<int64_t>(num_experts), torch::empty({tokens * k}, torch::kLong),
                  torch::empty({tokens, k}, torch::kLong)};
  const int64_t* experts = expert_index.data_ptr<int64_t>();
  for (int64_t pair = 0; pair < tokens * k; ++pair) ++plan.counts_E[experts[pair]];
  std::vector<int64_t> next(num_experts);
  std::exclusive_scan(plan.counts_E.begin(), plan.counts_E.end(), next.begin(), int64_t{0});
  auto* token_of_slot = plan.token_of_slot_M.data_ptr<int64_t>();
  auto* slot_of_pair = plan.slot_of_pair_NK.data_ptr<int64_t>();
  for (int64_t pair = 0; pair < tokens * k; ++pair) {
    const int64_t slot = next[experts[pair]]++;
    token_of_slot[slot] = pair / k;
    slot_of_pair[pair] = slot;
  }
  return plan;
}

Tensor gather_to_experts(const Tensor& x, const ExpertPlan& plan) {
  if (needs_gradient({x}))
    return GatherFunction::apply(x.contiguous(), plan.token_of_slot_M, plan.slot_of_pair_NK);
  return gathered(x.contiguous(), plan.token_of_slot_M);
}

Tensor combine_from_experts(const Tensor& y, const Tensor& weight, const ExpertPlan& plan) {
  if (needs_gradient({y, weight}))
    return CombineFunction::apply(y.contiguous(), weight.contiguous(), plan.token_of_slot_M,
                                  plan.slot_of_pair_NK);
  return combined(y.contiguous(), plan.slot_of_pair_NK, weight.contiguous().data_ptr<float>());
}

Tensor expert_weights(const Tensor& scores, const Tensor& index, bool normalises, double factor) {
  if (needs_gradient({scores}))
    return ExpertWeightsFunction::apply(scores.contiguous(), index, normalises, factor);
  return ExpertWeightsFunction::chosen_weights(scores.contiguous(), index, normalises, factor);
}

Tensor linear_cross_entropy(const Tensor& x, const Linear& head, const Tensor& targets,
                            const LinearOptions& options) {
  const bool with_gradients = needs_gradient({x, head.weight});
  Tensor weight = head.weight;
  if (weight.scalar_type() != torch::kFloat32) {
    CHECK(!with_gradients, "training needs f32 weights");
    weight = torch::empty({head.weight.size(0), head.weight.size(1)});
    kernels::widen_rows(weight_view(head), 0, weight.size(0), weight.data_ptr<float>());
  }
  return CrossEntropyFunction::apply(x.contiguous(), weight, targets, options.bf16_matmuls,
                                     with_gradients);
}

}  // namespace fathom::model::ops
