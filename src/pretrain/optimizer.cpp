#include "pretrain/optimizer.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/parallel.h"
#include "kernels/matmul.h"
#include "kernels/optimizer.h"

namespace fathom::pretrain {
namespace {

using torch::Tensor;

// out = X X^T for X [rows, cols], or X X for a symmetric X: the lower half is computed, the upper
// one copied.
void symmetric_product(int64_t rows, int64_t cols, const std::vector<float>& x,
                       std::vector<float>& out) {
  constexpr int64_t kBlock = 96;
  for (int64_t begin = 0; begin < rows; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, rows);
    kernels::gemm_serial({end - begin, end, cols}, {x.data() + begin * cols, cols, 1},
                         {x.data(), 1, cols}, {out.data() + begin * rows, end - begin, end, rows},
                         false, kernels::Precision::kBF16);
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i + 1; j < rows; ++j) out[i * rows + j] = out[j * rows + i];
}

// X <- (a I + b A + c A^2) X with A = X X^T; rows <= cols.
void newton_schulz_step(int64_t rows, int64_t cols, std::vector<float>& x, std::vector<float>& a,
                        std::vector<float>& b, std::vector<float>& next) {
  constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
  symmetric_product(rows, cols, x, a);
  symmetric_product(rows, rows, a, b);
  for (size_t i = 0; i < b.size(); ++i) b[i] = kB * a[i] + kC * b[i];
  for (int64_t i = 0; i < rows; ++i) b[i * rows + i] += kA;
  kernels::gemm_serial({rows, cols, rows}, {b.data(), rows, 1}, {x.data(), cols, 1},
                       {next.data(), rows, cols}, false, kernels::Precision::kBF16);
  x.swap(next);
}

void transpose(int64_t rows, int64_t cols, const float* in, float* out) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) out[j * rows + i] = in[i * cols + j];
}

}  // namespace

void orthogonalise(int64_t rows, int64_t cols, float* update) {
  const bool is_tall = rows > cols;
  const int64_t m = std::min(rows, cols), n = std::max(rows, cols);
  std::vector<float> x(m * n), a(m * m), b(m * m), next(m * n);
  if (is_tall)
    transpose(rows, cols, update, x.data());
  else
    std::copy_n(update, m * n, x.data());
  const double norm = std::sqrt(kernels::sum_of_squares(m * n, x.data())) + 1e-7;
  for (float& value : x) value = static_cast<float>(value / norm);
  for (int i = 0; i < 5; ++i) newton_schulz_step(m, n, x, a, b, next);
  if (is_tall)
    transpose(m, n, x.data(), update);
  else
    std::copy_n(x.data(), m * n, update);
}

double weight_decay_of(model::Role role, const OptimizerRecipe& recipe) {
  switch (role) {
    case model::Role::kMatrix:
      return recipe.weight_decay;
    case model::Role::kEmbedding:
      return recipe.embedding_weight_decay;
    case model::Role::kRouter:
      return recipe.router_weight_decay;
    default:
      return recipe.norm_weight_decay;
  }
}

Optimizer::Optimizer(std::vector<model::TensorSlot> slots, OptimizerRecipe recipe,
                     model::RankGroup ranks)
    : recipe_(std::move(recipe)), ranks_(std::move(ranks)) {
  for (auto& slot : slots) {
    if (!slot.tensor->requires_grad()) continue;
    const bool is_muon = slot.role == model::Role::kMatrix && recipe_.matrices == "muon";
    const bool is_indexer = model::is_indexer(slot);
    slots_.push_back({std::move(slot), is_muon, is_indexer, {}, {}});
  }
  std::vector<int64_t> sizes;
  for (const Slot& slot : slots_) sizes.push_back(slot.slot.tensor->numel());
  const auto owners = balanced_owners(sizes, ranks_.size());
  for (size_t i = 0; i < slots_.size(); ++i) owned_.push_back({slots_[i].slot.tensor, owners[i]});
}

Optimizer::Norms Optimizer::gradient_norms() const {
  const Tensor all = torch::zeros({std::ssize(slots_)}, torch::kDouble);
  double* const squares = all.data_ptr<double>();
  base::parallel_for(static_cast<int64_t>(slots_.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tensor& gradient = slots_[i].slot.tensor->grad();
      if (gradient.defined())
        squares[i] = kernels::sum_of_squares(gradient.numel(), gradient.data_ptr<float>());
    }
  });
  ranks_.all_reduce(all);  // of each tensor one rank holds the gradient
  Norms sums;
  for (size_t i = 0; i < slots_.size(); ++i)
    (slots_[i].is_indexer ? sums.indexer : sums.model) += squares[i];
  return {std::sqrt(sums.model), std::sqrt(sums.indexer)};
}

void Optimizer::update(Slot& slot, double learning_rate, int64_t step,
                       double gradient_scale) const {
  Tensor& weight = *slot.slot.tensor;
  const Tensor& gradient = weight.grad();
  const int64_t count = weight.numel();
  float* w = weight.data_ptr<float>();
  const float* g = gradient.data_ptr<float>();
  const auto decay = static_cast<float>(weight_decay_of(slot.slot.role, recipe_));
  const auto rate = static_cast<float>(learning_rate);
  float* m = slot.first_moment.data_ptr<float>();
  if (!slot.is_muon) {
    const auto t = static_cast<double>(step);
    kernels::adamw(
        {rate, static_cast<float>(recipe_.beta1), static_cast<float>(recipe_.beta2),
         static_cast<float>(recipe_.epsilon), decay,
         static_cast<float>(1 - std::pow(recipe_.beta1, t)),
         static_cast<float>(1 - std::pow(recipe_.beta2, t)), static_cast<float>(gradient_scale)},
        count, g, w, m, slot.second_moment.data_ptr<float>());
    return;
  }
  const auto momentum = static_cast<float>(recipe_.muon_momentum);
  const auto scale = static_cast<float>(gradient_scale);
  std::vector<float> direction(count);
  for (int64_t i = 0; i < count; ++i) {
    m[i] = momentum * m[i] + (1 - momentum) * g[i] * scale;
    direction[i] = momentum * m[i] + (1 - momentum) * g[i] * scale;  // Nesterov
  }
  // Each part is a matrix of its own: all of the weight, or one head's rows of it.
  const int64_t num_parts = recipe_.muon_per_head ? slot.slot.num_heads : 1;
  const int64_t rows = weight.size(0) / num_parts, cols = weight.size(1);
  for (int64_t part = 0; part < num_parts; ++part)
    orthogonalise(rows, cols, direction.data() + part * rows * cols);
  // 0.2 sqrt(max(rows, cols)) gives the update AdamW's usual size, so both share one learning rate
  // and decay (Liu et al. 2025).
  const float size = 0.2f * std::sqrt(static_cast<float>(std::max(rows, cols)));
  for (int64_t i = 0; i < count; ++i) w[i] -= rate * (size * direction[i] + decay * w[i]);
}

Optimizer::Norms Optimizer::step(double learning_rate, int64_t step) {
  const auto is_updated = sum_gradients(owned_, ranks_);
  const Norms norms = gradient_norms();
  const auto clip = [&](double norm) {
    return norm > recipe_.clip_norm ? recipe_.clip_norm / norm : 1.0;
  };
  const double model_scale = clip(norms.model), indexer_scale = clip(norms.indexer);
  for (Slot& slot : slots_) {
    if (!slot.slot.tensor->grad().defined() || slot.first_moment.defined()) continue;
    slot.first_moment = torch::zeros(slot.slot.shape);
    if (!slot.is_muon) slot.second_moment = torch::zeros(slot.slot.shape);
  }
  base::parallel_for(static_cast<int64_t>(slots_.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (slots_[i].slot.tensor->grad().defined())
        update(slots_[i], learning_rate, step, slots_[i].is_indexer ? indexer_scale : model_scale);
  });
  for (Slot& slot : slots_) slot.slot.tensor->mutable_grad() = Tensor();
  share_values(owned_, is_updated, ranks_);
  return norms;
}

std::optional<std::string> Optimizer::non_finite_weight() const {
  std::vector<char> is_finite(slots_.size());
  base::parallel_for(static_cast<int64_t>(slots_.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tensor& weight = *slots_[i].slot.tensor;
      is_finite[i] = kernels::all_finite(weight.numel(), weight.data_ptr<float>());
    }
  });
  const auto found = std::find(is_finite.begin(), is_finite.end(), false);
  if (found == is_finite.end()) return {};
  return slots_[found - is_finite.begin()].slot.name;
}

std::vector<Optimizer::State> Optimizer::state() const {
  std::vector<State> state;
  for (const Slot& slot : slots_) {
    if (slot.first_moment.defined())
      state.push_back({slot.slot.name + ".first_moment", slot.first_moment});
    if (slot.second_moment.defined())
      state.push_back({slot.slot.name + ".second_moment", slot.second_moment});
  }
  return state;
}

void Optimizer::restore(const std::vector<State>& state) {
  for (const State& saved : state) {
    const size_t dot = saved.name.rfind('.');
    const std::string name = saved.name.substr(0, dot);
    const auto slot = std::find_if(slots_.begin(), slots_.end(),
                                   [&](const Slot& s) { return s.slot.name == name; });
    if (slot == slots_.end() || !saved.tensor.sizes().equals(slot->slot.shape))
      fail("optimizer state {} does not belong to this model", saved.name);
    if (!is_mine(static_cast<size_t>(slot - slots_.begin()))) continue;
    (saved.name.substr(dot) == ".first_moment" ? slot->first_moment : slot->second_moment) =
        saved.tensor.clone();
  }
}

}  // namespace fathom::pretrain
