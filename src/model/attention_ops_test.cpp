// The sparse stage's ops inside the model: gradients, cuts and masks. Names T1.. are those of the
// list in model/dsa_training_test.cpp.
#include "model/attention_ops.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "model/loss.h"
#include "model/test_config.h"

namespace fathom::model {
namespace {

using torch::Tensor;

constexpr ForwardOptions kWarmup{
    .form = AttentionForm::kMha, .sparse = false, .indexer_loss = true};
constexpr ForwardOptions kSparse{.form = AttentionForm::kMha, .sparse = true, .indexer_loss = true};

Model sparse_model(int64_t index_topk) {
  Config config = tiny_config();
  config.index_topk = index_topk;
  return initialise(config, 3);
}

TrainingBatch batch_of(std::vector<int64_t> lengths) {
  torch::manual_seed(5);
  int64_t tokens = 0;
  for (int64_t length : lengths) tokens += length;
  return {torch::randint(50, {tokens}, torch::kLong), torch::randint(50, {tokens}, torch::kLong),
          std::move(lengths)};
}

LossOptions options_of(const ForwardOptions& forward, bool language_model = true) {
  return {.mtp_weight = 0.3,
          .balance_weight = 0,
          .indexer_weight = 1,
          .language_model = language_model,
          .forward = forward};
}

// Gradients by name after one backward pass; undefined where there is none.
std::vector<std::pair<TensorSlot, Tensor>> gradients(Model& model, const Losses& losses) {
  losses.total.backward();
  std::vector<std::pair<TensorSlot, Tensor>> result;
  for (const TensorSlot& slot : tensor_slots(model.weights, model.config)) {
    const Tensor gradient = slot.tensor->grad();
    result.emplace_back(slot, gradient.defined() ? gradient.clone() : Tensor());
    slot.tensor->mutable_grad() = Tensor();
  }
  return result;
}

TEST(DsaTraining, T3SparseLossEqualsDenseBitForBitWhereKIsAtLeastL) {
  const TrainingBatch batch = batch_of({10, 14});
  for (int64_t top_k : {14, 64}) {
    Model model = sparse_model(top_k);
    const Losses dense = language_model_loss(model, batch, options_of(kWarmup));
    const Losses sparse = language_model_loss(model, batch, options_of(kSparse));
    EXPECT_EQ(dense.main, sparse.main);
    EXPECT_EQ(dense.indexer, sparse.indexer);
    const auto expected = gradients(model, dense), found = gradients(model, sparse);
    for (size_t i = 0; i < expected.size(); ++i)
      if (expected[i].second.defined()) {
        EXPECT_TRUE(expected[i].second.equal(found[i].second)) << expected[i].first.name;
      }
  }
  Model model = sparse_model(5);
  const Losses dense = language_model_loss(model, batch, options_of(kWarmup));
  const Losses sparse = language_model_loss(model, batch, options_of(kSparse));
  EXPECT_NE(dense.main, sparse.main);
  for (size_t i = 0; i < dense.indexer.size(); ++i) {
    EXPECT_NE(dense.indexer[i], sparse.indexer[i]);
    EXPECT_GE(dense.indexer[i], 0);
    EXPECT_GE(sparse.indexer[i], 0);
  }
}

// The indexer's loss reaches indexers alone and the language-model loss never reaches them.
TEST(DsaTraining, T8GradientsAreIsolatedBothWays) {
  const TrainingBatch batch = batch_of({10, 14});
  for (const ForwardOptions& forward : {kWarmup, kSparse}) {
    Model model = sparse_model(5);
    ForwardOptions without = forward;
    without.indexer_loss = false;
    const auto both = gradients(model, language_model_loss(model, batch, options_of(forward)));
    const auto main = gradients(model, language_model_loss(model, batch, options_of(without)));
    const auto indexer =
        gradients(model, language_model_loss(model, batch, options_of(forward, false)));
    for (size_t i = 0; i < both.size(); ++i) {
      const TensorSlot& slot = both[i].first;
      if (slot.role == Role::kExpertBias) continue;
      if (is_indexer(slot)) {
        EXPECT_FALSE(main[i].second.defined()) << slot.name;
        ASSERT_TRUE(indexer[i].second.defined()) << slot.name;
        EXPECT_GT(indexer[i].second.abs().max().item<float>(), 0) << slot.name;
        EXPECT_TRUE(both[i].second.equal(indexer[i].second)) << slot.name;
      } else {
        EXPECT_FALSE(indexer[i].second.defined()) << slot.name;
        ASSERT_TRUE(main[i].second.defined()) << slot.name;
        EXPECT_TRUE(both[i].second.equal(main[i].second)) << slot.name;
      }
    }
  }
}

// Through the whole model: every indexer weight's gradient against central differences of the
// loss. In the sparse stage a step flips selections, which no gradient knows of: there
// kernels/indexer_loss_test holds the selection fixed.
TEST(DsaTraining, T1IndexerGradientsEqualCentralDifferencesOfTheLoss) {
  const TrainingBatch batch = batch_of({10, 14});
  Model model = sparse_model(8);
  const LossOptions options = options_of(kWarmup, false);
  const auto found = gradients(model, language_model_loss(model, batch, options));
  const torch::NoGradGuard no_grad;
  for (const auto& [slot, gradient] : found) {
    if (!is_indexer(slot)) continue;
    Tensor flat = slot.tensor->view(-1);
    const int64_t j = gradient.flatten().abs().argmax().item<int64_t>();
    const float original = flat[j].item<float>(), step = 2e-3f;
    flat[j] = original + step;
    const double above = language_model_loss(model, batch, options).total.item<double>();
    flat[j] = original - step;
    const double below = language_model_loss(model, batch, options).total.item<double>();
    flat[j] = original;
    const double expected = (above - below) / (2 * step);
    EXPECT_NEAR(gradient.flatten()[j].item<double>(), expected, 3e-4 + 0.02 * std::abs(expected))
        << slot.name;
  }
}

// The main model's gradients through attention over selected keys.
TEST(SparseStage, ModelGradientsEqualCentralDifferencesOfTheLoss) {
  const TrainingBatch batch = batch_of({10, 14});
  Model model = sparse_model(5);
  // Constant index scores: ties go to the lower key, whatever the weights, so nothing flips.
  {
    const torch::NoGradGuard no_grad;
    for (const TensorSlot& slot : tensor_slots(model.weights, model.config))
      if (slot.name.ends_with("indexer.weights_proj.weight")) slot.tensor->zero_();
  }
  ForwardOptions forward = kSparse;
  forward.indexer_loss = false;
  const LossOptions options = options_of(forward);
  const auto found = gradients(model, language_model_loss(model, batch, options));
  const torch::NoGradGuard no_grad;
  for (const auto& [slot, gradient] : found) {
    if (slot.name.find("self_attn") == std::string::npos || is_indexer(slot)) continue;
    Tensor flat = slot.tensor->view(-1);
    const int64_t j = gradient.flatten().abs().argmax().item<int64_t>();
    const float original = flat[j].item<float>(), step = 4e-3f;
    flat[j] = original + step;
    const double above = language_model_loss(model, batch, options).total.item<double>();
    flat[j] = original - step;
    const double below = language_model_loss(model, batch, options).total.item<double>();
    flat[j] = original;
    const double expected = (above - below) / (2 * step);
    EXPECT_NEAR(gradient.flatten()[j].item<double>(), expected, 3e-4 + 0.02 * std::abs(expected))
        << slot.name;
  }
}

// The warm-up computes no cross-entropy and gives gradients to the indexers alone.
TEST(DsaTraining, T9TheWarmUpSkipsTheLanguageModelLoss) {
  Model model = sparse_model(5);
  const Losses losses = language_model_loss(model, batch_of({24}), options_of(kWarmup, false));
  EXPECT_EQ(losses.main, 0);
  EXPECT_EQ(losses.mtp, 0);
  ASSERT_EQ(losses.indexer.size(), 3u);  // two layers and MTP's
  double sum = 0;
  for (double loss : losses.indexer) sum += loss;
  EXPECT_NEAR(losses.total.item<double>(), sum, 1e-5);
  for (double recall : losses.indexer_recall) {
    EXPECT_GT(recall, 0.2);  // of 24 keys, five hold some of the mass
    EXPECT_LE(recall, 1.0 + 1e-5);
  }
}

// No query selects what it may not see.
TEST(SparseStage, AFutureTokenChangesNothingBeforeIt) {
  const Model model = sparse_model(5);
  const torch::NoGradGuard no_grad;
  const Segment segment{24, 0, nullptr};
  ForwardOptions options = kSparse;
  options.indexer_loss = false;
  Tensor tokens = batch_of({24}).tokens_N.clone();
  const Tensor before = forward(model, tokens, {&segment, 1}, options);
  for (int64_t changed : {1, 3, 12, 20}) {
    Tensor other = tokens.clone();
    other[changed] = (other[changed].item<int64_t>() + 1) % 50;
    const Tensor after = forward(model, other, {&segment, 1}, options);
    EXPECT_TRUE(before.narrow(0, 0, changed).equal(after.narrow(0, 0, changed))) << changed;
    EXPECT_FALSE(before[changed].equal(after[changed]));
  }
}

// What training computes sparsely is what serving computes sparsely, in both forms.
TEST(SparseStage, TrainingAndServingGiveTheSameHiddenStates) {
  const Model model = sparse_model(5);
  const torch::NoGradGuard no_grad;
  const Tensor tokens = batch_of({24}).tokens_N;
  const Segment plain{24, 0, nullptr};
  ForwardOptions training = kSparse;
  training.indexer_loss = false;
  const Tensor trained = forward(model, tokens, {&plain, 1}, training);
  for (AttentionForm form : {AttentionForm::kMha, AttentionForm::kMqa}) {
    KvCache cache(model.config);
    const Segment cached{24, 0, &cache};
    const Tensor served = forward(model, tokens, {&cached, 1}, {.form = form});
    EXPECT_LE((trained - served).abs().max().item<double>(), 2e-5);
  }
}

TEST(DsaTraining, T13PackedSequencesEqualSeparateOnes) {
  const Model model = sparse_model(5);
  const torch::NoGradGuard no_grad;
  const TrainingBatch both = batch_of({10, 14});
  const auto part = [&](int64_t begin, int64_t length) {
    return language_model_loss(
        model,
        {both.tokens_N.narrow(0, begin, length), both.targets_N.narrow(0, begin, length), {length}},
        options_of(kSparse));
  };
  const Losses packed = language_model_loss(model, both, options_of(kSparse));
  const Losses first = part(0, 10), second = part(10, 14);
  EXPECT_NEAR(packed.main, (10 * first.main + 14 * second.main) / 24, 1e-5);
  for (size_t i = 0; i < packed.indexer.size(); ++i)
    EXPECT_NEAR(packed.indexer[i], (10 * first.indexer[i] + 14 * second.indexer[i]) / 24, 1e-5);
}

}  // namespace
}  // namespace fathom::model
