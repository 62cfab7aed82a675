#include "bench/decoupling.h"

#include <cmath>

#include "base/parallel.h"
#include "pretrain/trainer.h"

namespace fathom::bench {
namespace {

using torch::Tensor;

// Of the main model's tensors, in the order of its slots.
std::vector<Tensor> main_gradients(model::Model& model, const model::TrainingBatch& batch,
                                   const model::LossOptions& options) {
  model::language_model_loss(model, batch, options).total.backward();
  std::vector<Tensor> gradients;
  for (const auto& slot : model::tensor_slots(model.weights, model.config)) {
    const Tensor gradient = slot.tensor->grad();
    if (!model::is_indexer(slot) && gradient.defined()) gradients.push_back(gradient.clone());
    slot.tensor->mutable_grad() = Tensor();
  }
  return gradients;
}

double norm_of(const std::vector<Tensor>& tensors) {
  double squares = 0;
  for (const Tensor& tensor : tensors)
    squares += tensor.to(torch::kDouble).square().sum().item<double>();
  return std::sqrt(squares);
}

Json compare(const std::vector<Tensor>& without_loss, const std::vector<Tensor>& with_loss) {
  std::vector<Tensor> differences;
  bool is_identical = without_loss.size() == with_loss.size();
  for (size_t i = 0; is_identical && i < with_loss.size(); ++i)
    differences.push_back(with_loss[i] - without_loss[i]);
  for (size_t i = 0; is_identical && i < with_loss.size(); ++i)
    is_identical = with_loss[i].equal(without_loss[i]);
  const double norm = norm_of(without_loss);
  return {{"is_bit_identical", is_identical},
          {"relative_change", norm_of(differences) / norm},
          {"gradient_norm_without_indexer_loss", norm},
          {"gradient_norm", norm_of(with_loss)}};
}

}  // namespace

Json measure_decoupling(const DecouplingOptions& options) {
  if (options.num_threads > 0) base::set_num_threads(options.num_threads);
  const auto recipe =
      pretrain::read_recipe(options.recipe, options.overrides, pretrain::Stage::kSparse);
  const auto& t = recipe.training;
  const auto tokens = recipe.data / "tokens";
  pretrain::check_tokens_fit(tokens, recipe.model);
  const pretrain::TokenRows rows(tokens, "train", t.sequence_length);
  const auto indices = pretrain::rows_in_order(rows.num_rows(), 0, t.micro_batch_rows, t.seed);
  const auto batch =
      pretrain::make_batch(rows, indices, recipe.model.bos_token_id, t.document_masking);
  model::Model model = pretrain::Trainer::begin_with(recipe, options.model).model();
  const model::LossOptions with_loss = pretrain::loss_options(recipe);
  model::LossOptions without_loss = with_loss, no_input_cut = with_loss, no_teacher_cut = with_loss;
  without_loss.forward.indexer_loss = false;
  no_input_cut.forward.detach_indexer_input = false;
  no_teacher_cut.forward.detach_teacher = false;
  const auto expected = main_gradients(model, batch, without_loss);
  const auto measure = [&](const model::LossOptions& loss) {
    return compare(expected, main_gradients(model, batch, loss));
  };
  return {{"model", options.model.string()},
          {"tokens", t.micro_batch_rows * t.sequence_length},
          {"cuts", measure(with_loss)},
          {"no_input_cut", measure(no_input_cut)},
          {"no_teacher_cut", measure(no_teacher_cut)}};
}

}  // namespace fathom::bench
