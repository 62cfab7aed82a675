// Models whose queries are made of the layer's input, without a latent (V2-Lite, Moonlight).
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <map>

#include "model/loss.h"
#include "model/test_config.h"
#include "model/transformer.h"

namespace fathom::model {
namespace {

using torch::Tensor;

Config config_of_rank(int64_t q_lora_rank) {
  Config config = tiny_config();
  config.q_lora_rank = q_lora_rank;
  config.index_topk = 8;
  config.rms_norm_eps = 1e-12;  // so that a norm of what is normed changes nothing
  return config;
}

// The same model with a latent: as wide as the input, and equal to it, which is normed already.
Model with_latent(Model model) {
  Model out = initialise(config_of_rank(model.config.hidden_size), 1);
  std::map<std::string, Tensor> from;
  for (const TensorSlot& slot : tensor_slots(model.weights, model.config))
    from[slot.name] = *slot.tensor;
  const torch::NoGradGuard no_grad;
  for (const TensorSlot& slot : tensor_slots(out.weights, out.config)) {
    std::string name = slot.name;
    if (const auto at = name.find("q_b_proj"); at != std::string::npos)
      name.replace(at, 8, "q_proj");
    if (name.ends_with("q_a_proj.weight"))
      slot.tensor->copy_(torch::eye(model.config.hidden_size));
    else if (!name.ends_with("q_a_layernorm.weight"))
      slot.tensor->copy_(from.at(name));
  }
  return out;
}

struct Pair {
  Model without = initialise(config_of_rank(0), 3);
  Model with = with_latent(without);
  Tensor tokens_N;

  Pair() {
    torch::manual_seed(2);
    tokens_N = torch::randint(50, {40}, torch::kLong);
  }
};

TEST(QueryLatent, WithoutOneQueriesAndIndexerAreMadeOfTheInput) {
  Pair pair;
  int num_queries = 0;
  for (const TensorSlot& slot : tensor_slots(pair.without.weights, pair.without.config)) {
    EXPECT_EQ(slot.name.find("q_a_"), std::string::npos) << slot.name;
    if (slot.name.ends_with("self_attn.q_proj.weight")) {
      ++num_queries;
      EXPECT_EQ(slot.shape, (std::vector<int64_t>{2 * 12, 24}));
      EXPECT_EQ(slot.num_heads, 2);
    }
    if (slot.name.ends_with("indexer.wq_b.weight")) {
      EXPECT_EQ(slot.shape, (std::vector<int64_t>{2 * 8, 24}));
    }
  }
  EXPECT_EQ(num_queries, 3);  // two layers and MTP's
}

TEST(QueryLatent, ItServesAsTheModelWhoseLatentIsTheInput) {
  const torch::NoGradGuard no_grad;
  const Pair pair;
  const auto run = [&](const Model& model, AttentionForm form, Trace& trace) {
    KvCache cache(model.config);
    const Segment segment{40, 0, &cache};
    return forward(model, pair.tokens_N, {&segment, 1}, {.form = form}, &trace);
  };
  for (const auto form : {AttentionForm::kMha, AttentionForm::kMqa}) {
    Trace a, b;
    const Tensor hidden = run(pair.without, form, a);
    EXPECT_TRUE(hidden.allclose(run(pair.with, form, b), 1e-4, 1e-4));
    for (size_t layer = 0; layer < 2; ++layer)
      EXPECT_TRUE(a.layers[layer].topk_NK.equal(b.layers[layer].topk_NK)) << layer;
  }
}

TEST(QueryLatent, ItTrainsAsTheModelWhoseLatentIsTheInput) {
  Pair pair;
  const TrainingBatch batch{pair.tokens_N, pair.tokens_N.roll(-1), {40}, {40}};
  const LossOptions options{.balance_weight = 1e-2,
                            .forward = {.form = AttentionForm::kMha, .indexer_loss = true}};
  for (Model* model : {&pair.without, &pair.with})
    language_model_loss(*model, batch, options).total.backward();
  const auto same = [](const Linear& a, const Linear& b) {
    ASSERT_TRUE(a.weight.grad().defined());
    const double scale = b.weight.grad().abs().max().item<double>();
    EXPECT_GT(scale, 1e-6);
    EXPECT_LT((a.weight.grad() - b.weight.grad()).abs().max().item<double>(), 1e-3 * scale);
  };
  for (size_t layer = 0; layer < 2; ++layer) {
    const AttentionWeights& a = pair.without.weights.layers[layer].self_attn;
    const AttentionWeights& b = pair.with.weights.layers[layer].self_attn;
    same(a.q_proj, b.q_b_proj);
    same(a.kv_b_proj, b.kv_b_proj);
    same(a.indexer.wq_b, b.indexer.wq_b);
    same(a.indexer.wk, b.indexer.wk);
  }
}

}  // namespace
}  // namespace fathom::model
