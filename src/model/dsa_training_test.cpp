// Tests T1 to T15 that every implementation of DSA's training should pass, by number. Here those of
// the loss and the selection; the others stand beside what they test: ctest -R 'T[0-9]+' runs all.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "model/attention_ops.h"
#include "model/test_config.h"
#include "model/transformer.h"

namespace fathom::model {
namespace {

using torch::Tensor;

constexpr int64_t kHeads = 3, kQk = 12, kIndexHeads = 4, kIndexDim = 10;
const kernels::AttentionShape kShape{kHeads, kQk, kQk, 0.3f};

using Lists = std::vector<std::vector<int32_t>>;  // the keys of each query; none at all: dense

// Attention's side and the indexer's of one sequence, of random numbers.
struct Sequence {
  Tensor q, k, v, q_NJX, w_NJ, k_NX;

  explicit Sequence(int64_t length) {
    torch::manual_seed(static_cast<uint64_t>(length));
    q = torch::randn({length, kHeads * kQk});
    k = torch::randn({length, kHeads * kQk});
    v = torch::randn({length, kHeads * kQk});
    q_NJX = torch::randn({length, kIndexHeads * kIndexDim});
    w_NJ = torch::randn({length, kIndexHeads});
    k_NX = torch::randn({length, kIndexDim});
  }
  int64_t length() const { return q.size(0); }
};

// Every query's `count` keys of the greatest scores among those it sees.
Lists best_keys(const Tensor& scores_TS, int64_t count) {
  Lists lists;
  for (int64_t t = 0; t < scores_TS.size(0); ++t) {
    const Tensor order = std::get<1>(scores_TS[t].narrow(0, 0, t + 1).sort(-1, true));
    std::vector<int32_t> keys;
    for (int64_t i = 0; i < std::min(count, t + 1); ++i)
      keys.push_back(static_cast<int32_t>(order[i].item<int64_t>()));
    std::sort(keys.begin(), keys.end());
    lists.push_back(std::move(keys));
  }
  return lists;
}

ops::KeySelection selection_of(const Lists& lists) {
  if (lists.empty()) return {};
  std::vector<int32_t> keys;
  std::vector<int64_t> begins = {0};
  for (const auto& list : lists) {
    keys.insert(keys.end(), list.begin(), list.end());
    begins.push_back(std::ssize(keys));
  }
  return {torch::tensor(keys, torch::kInt), torch::tensor(begins, torch::kLong)};
}

ops::IndexerLoss loss_of(const Sequence& in, const Lists& lists) {
  const std::vector<int64_t> lengths = {in.length()};
  const auto segments = ops::segment_rows(lengths);
  const auto selection = selection_of(lists);
  const auto attended = ops::attend(in.q, in.k, in.v, kShape, segments, selection);
  return ops::indexer_loss({in.q_NJX, in.w_NJ, in.k_NX}, {in.q, in.k, attended.lse_HN, kShape},
                           segments, selection, 0);
}

// Which keys each query sees, [T, S].
Tensor mask_of(int64_t length, const Lists& lists) {
  if (lists.empty()) return torch::ones({length, length}, torch::kBool).tril();
  Tensor mask = torch::zeros({length, length}, torch::kBool);
  for (int64_t t = 0; t < length; ++t)
    for (const int32_t s : lists[t]) mask[t][s] = true;
  return mask;
}

// Attention's probabilities, the mean over heads; the whole [T, S] in double precision.
Tensor teacher_TS(const Sequence& in, const Tensor& mask) {
  const auto heads = [&](const Tensor& x) {
    return x.to(torch::kDouble).view({in.length(), kHeads, kQk}).transpose(0, 1);
  };
  const Tensor scores = heads(in.q).matmul(heads(in.k).transpose(1, 2)) * 0.3;
  return scores.masked_fill(mask.logical_not(), -INFINITY).softmax(2).nan_to_num(0).mean(0);
}

Tensor scores_TS(const Tensor& q_NJX, const Tensor& w_NJ, const Tensor& k_NX) {
  const Tensor z_TJS = q_NJX.view({q_NJX.size(0), w_NJ.size(1), -1}).matmul(k_NX.t());
  return (w_NJ.unsqueeze(2) * z_TJS.relu()).sum(1);
}

double worst(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

// T1: the hand-written backward pass against LibTorch's differentiation of the formula.
TEST(DsaTraining, T1ManualBackwardEqualsAutogradOfDenseAndSparseLoss) {
  for (const auto& [length, count] : {std::pair{16, 8}, {32, 16}, {64, 32}}) {
    for (const bool is_sparse : {false, true}) {
      Sequence in(length);
      const Lists lists =
          is_sparse ? best_keys(scores_TS(in.q_NJX, in.w_NJ, in.k_NX), count) : Lists();
      Tensor* const ours[] = {&in.q_NJX, &in.w_NJ, &in.k_NX};
      std::vector<Tensor> exact;
      for (Tensor* tensor : ours) {
        tensor->set_requires_grad(true);
        exact.push_back(tensor->detach().to(torch::kDouble).set_requires_grad(true));
      }
      const Tensor loss = loss_of(in, lists).loss;
      loss.backward();
      const Tensor mask = mask_of(length, lists);
      const Tensor p = teacher_TS(in, mask);
      const Tensor log_softmax = scores_TS(exact[0], exact[1], exact[2])
                                     .masked_fill(mask.logical_not(), -INFINITY)
                                     .log_softmax(1)
                                     .masked_fill(mask.logical_not(), 0);
      const Tensor expected = (p * (p.clamp_min(1e-300).log() - log_softmax)).sum() / length;
      expected.backward();
      EXPECT_NEAR(loss.item<double>(), expected.item<double>(), 1e-5);
      for (size_t i = 0; i < exact.size(); ++i)
        EXPECT_TRUE(
            ours[i]->grad().to(torch::kDouble).allclose(exact[i].grad(), /*rtol=*/1e-5, 1e-5))
            << length << (is_sparse ? " sparse " : " dense ") << i << ": "
            << worst(ours[i]->grad().to(torch::kDouble), exact[i].grad());
    }
  }
}

// T2: with one index head, w = 1 and unit vectors as keys the scores are q itself, so that q's
// gradient is the logits'. Keys that are not seen, and a query that sees none, get zeros.
TEST(DsaTraining, T2LogitGradientIsSoftmaxMinusTargetInBothReductions) {
  constexpr int64_t kLength = 24;
  for (const bool is_sparse : {false, true}) {
    Sequence in(kLength);
    in.q_NJX = torch::rand({kLength, kLength}) + 0.1;
    in.w_NJ = torch::ones({kLength, 1});
    in.k_NX = torch::eye(kLength);
    Lists lists = is_sparse ? best_keys(in.q_NJX, 5) : Lists();
    if (is_sparse) lists[7].clear();
    const Tensor mask = mask_of(kLength, lists);
    const Tensor softmax = in.q_NJX.to(torch::kDouble)
                               .masked_fill(mask.logical_not(), -INFINITY)
                               .softmax(1)
                               .nan_to_num(0);
    const Tensor expected = softmax - teacher_TS(in, mask);
    in.q_NJX.set_requires_grad(true);
    for (const double tokens : {1.0, static_cast<double>(kLength)}) {  // mean, then sum
      in.q_NJX.mutable_grad() = Tensor();
      (loss_of(in, lists).loss * tokens).backward();
      const Tensor found = in.q_NJX.grad().to(torch::kDouble) * (kLength / tokens);
      EXPECT_LE(worst(found, expected), 1e-5) << is_sparse << tokens;
      EXPECT_EQ(found.masked_select(mask.logical_not()).abs().max().item<double>(), 0);
      if (is_sparse) {
        EXPECT_EQ(found[7].abs().max().item<double>(), 0);
      }
    }
  }
}

struct SparsePass {
  Trace trace;
  Tensor hidden_ND;
};

Model sparse_model(int64_t index_topk) {
  Config config = tiny_config();
  config.index_topk = index_topk;
  return initialise(config, 3);
}

SparsePass served(const Model& model, const Tensor& tokens_N, AttentionForm form) {
  const torch::NoGradGuard no_grad;
  KvCache cache(model.config);
  const Segment segment{tokens_N.size(0), 0, &cache};
  SparsePass pass;
  pass.hidden_ND = forward(model, tokens_N, {&segment, 1}, {.form = form}, &pass.trace);
  return pass;
}

Tensor random_tokens(int64_t count) {
  torch::manual_seed(5);
  return torch::randint(50, {count}, torch::kLong);
}

// T6: slots without a key are -1; a query with fewer keys than k has them all.
TEST(DsaTraining, T6SlotsWithoutAKeyAreMinusOneAndNoKeyIsFromTheFuture) {
  constexpr int64_t kLength = 24, kTopK = 9;
  const SparsePass pass = served(sparse_model(kTopK), random_tokens(kLength), AttentionForm::kMqa);
  for (const LayerTrace& layer : pass.trace.layers) {
    ASSERT_EQ(layer.topk_NK.size(1), kTopK);
    for (int64_t t = 0; t < kLength; ++t) {
      const int32_t* const keys = layer.topk_NK.data_ptr<int32_t>() + t * kTopK;
      const int64_t count = std::min(t + 1, kTopK);
      for (int64_t i = 0; i < kTopK; ++i) {
        if (i >= count) {
          EXPECT_EQ(keys[i], -1) << t;
        } else if (t < kTopK) {
          EXPECT_EQ(keys[i], i) << t;
        } else {
          EXPECT_TRUE(keys[i] > (i > 0 ? keys[i - 1] : -1) && keys[i] <= t) << t << " " << i;
        }
      }
    }
  }
}

// T7: training gathers, the MHA form masks, the MQA form absorbs: below k, at it and above it.
TEST(DsaTraining, T7AbsorbedEqualsNonAbsorbedEqualsTheDenseMask) {
  constexpr int64_t kLength = 24;
  const Tensor tokens = random_tokens(kLength);
  for (const int64_t top_k : {5, 24, 64}) {
    const Model model = sparse_model(top_k);
    const torch::NoGradGuard no_grad;
    const Segment segment{kLength, 0, nullptr};
    const Tensor gathered = forward(model, tokens, {&segment, 1}, {.form = AttentionForm::kMha});
    const Tensor masked = served(model, tokens, AttentionForm::kMha).hidden_ND;
    const Tensor absorbed = served(model, tokens, AttentionForm::kMqa).hidden_ND;
    EXPECT_LE(worst(gathered, masked), 2e-5) << top_k;
    EXPECT_LE(worst(gathered, absorbed), 2e-5) << top_k;
  }
}

// T11: of equal scores the lower keys are selected, and choosing does not change a score.
TEST(DsaTraining, T11TiesGoToTheLowerKeyAndDoNotBiasScores) {
  constexpr int64_t kLength = 24, kTopK = 9;
  Model model = sparse_model(kTopK);
  {
    const torch::NoGradGuard no_grad;
    for (const TensorSlot& slot : tensor_slots(model.weights, model.config))
      if (slot.name.ends_with("indexer.weights_proj.weight")) slot.tensor->zero_();
  }
  const SparsePass pass = served(model, random_tokens(kLength), AttentionForm::kMqa);
  for (const LayerTrace& layer : pass.trace.layers) {
    for (int64_t t = kTopK; t < kLength; ++t)
      for (int64_t i = 0; i < kTopK; ++i) EXPECT_EQ(layer.topk_NK[t][i].item<int32_t>(), i);
    const Tensor seen = torch::ones({kLength, kLength}, torch::kBool).tril();
    EXPECT_EQ(layer.index_scores_NS.masked_select(seen).abs().max().item<float>(), 0);
  }
}

}  // namespace
}  // namespace fathom::model
