// T15 of the list in model/dsa_training_test.cpp: what sampling and training make of the same
// tokens, with attention that is sparse in both.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cmath>
#include <future>

#include "base/random.h"
#include "engine/engine.h"
#include "model/test_config.h"
#include "model/transformer.h"

namespace fathom::engine {
namespace {

using torch::Tensor;

std::shared_ptr<const model::Model> sparse_model() {
  model::Config config = model::tiny_config();
  config.num_nextn_predict_layers = 0;
  config.index_topk = 12;
  return std::make_shared<const model::Model>(model::initialise(config, 3));
}

struct Rollout {
  std::vector<int64_t> tokens;  // prompt and answer
  std::vector<float> logprobs;  // of the answer
};

Rollout roll_out(const std::shared_ptr<const model::Model>& model, int64_t prompt_length,
                 uint64_t seed) {
  Engine engine(model, {.numerics = Numerics::kPlain,
                        .max_batch_tokens = 16,
                        .cache_format = model::CacheFormat::kF32});
  Request request;
  base::Random random(seed);
  for (int64_t i = 0; i < prompt_length; ++i)
    request.prompt.push_back(static_cast<int32_t>(random.below(50)));
  request.sampling.seed = static_cast<int64_t>(seed);
  request.record = true;
  request.max_tokens = 20;
  Rollout rollout{{request.prompt.begin(), request.prompt.end()}, {}};
  std::promise<void> done;
  engine.submit(request, [&](const RequestEvent& event) {
    if (event.has_token) {
      rollout.tokens.push_back(event.token.id);
      rollout.logprobs.push_back(event.record->sampler_logprob);
    }
    if (event.is_finished) done.set_value();
  });
  done.get_future().wait();
  return rollout;
}

// Of the answer's tokens, as training computes them: one pass in the MHA form, without a cache.
Tensor training_logprobs(const model::Model& model, const Rollout& rollout) {
  const model::ForwardOptions options{.form = model::AttentionForm::kMha, .sparse = true};
  const auto length = std::ssize(rollout.tokens), answer = std::ssize(rollout.logprobs);
  const model::Segment segment{length, 0, nullptr};
  const Tensor tokens = torch::tensor(rollout.tokens, torch::kLong);
  const Tensor hidden = model::forward(model, tokens, {&segment, 1}, options);
  const Tensor log_p = model::logits(model, hidden, options).log_softmax(1);
  return log_p.gather(1, tokens.roll(-1).unsqueeze(1))
      .squeeze(1)
      .narrow(0, length - answer - 1, answer);
}

TEST(DsaTraining, T15TrainingAndRolloutAgreeOnEveryLogProbability) {
  const auto model = sparse_model();
  const torch::NoGradGuard no_grad;
  double sum = 0, worst = 0;
  int64_t count = 0;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    const Rollout rollout = roll_out(model, 30, seed);
    ASSERT_EQ(rollout.logprobs.size(), 20u);
    const Tensor trained = training_logprobs(*model, rollout);
    for (size_t i = 0; i < rollout.logprobs.size(); ++i, ++count) {
      const double difference =
          std::abs(trained[static_cast<int64_t>(i)].item<double>() - rollout.logprobs[i]);
      sum += difference;
      worst = std::max(worst, difference);
    }
  }
  RecordProperty("mean", fmt::format("{:.1e}", sum / static_cast<double>(count)));
  EXPECT_LT(sum / static_cast<double>(count), 1e-6);  // log-probabilities of 4 are 5e-7 apart
  EXPECT_LT(worst, 1e-5);
}

// Token by token through the cache, every layer gives what it gives for all tokens at once.
TEST(DsaTraining, T15LayerOutputsAreExactlyEqualTokenByTokenAndAtOnce) {
  const auto model = sparse_model();
  const torch::NoGradGuard no_grad;
  const Rollout rollout = roll_out(model, 30, 1);
  const Tensor tokens = torch::tensor(rollout.tokens, torch::kLong);
  model::KvCache whole(model->config), growing(model->config);
  const model::Segment all{tokens.size(0), 0, &whole};
  model::Trace at_once;
  model::forward(*model, tokens, {&all, 1}, {}, &at_once);
  for (int64_t t = 0; t < tokens.size(0); ++t) {
    const model::Segment one{1, t, &growing};
    model::Trace step;
    model::forward(*model, tokens.narrow(0, t, 1), {&one, 1}, {}, &step);
    for (size_t layer = 0; layer < step.layers.size(); ++layer)
      EXPECT_TRUE(step.layers[layer].hidden_ND[0].equal(at_once.layers[layer].hidden_ND[t]))
          << "layer " << layer << ", token " << t;
  }
}

}  // namespace
}  // namespace fathom::engine
