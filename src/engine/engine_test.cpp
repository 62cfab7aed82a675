#include "engine/engine.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <future>
#include <map>
#include <numeric>
#include <thread>

#include "base/parallel.h"
#include "model/checkpoint.h"
#include "model/test_config.h"
#include "model/transformer.h"

namespace fathom::engine {
namespace {

TEST(Sampler, GreedyTakesTheBestAndTheLowerIdInTies) {
  base::Random random(1);
  EXPECT_EQ(draw(std::vector<float>{1, 3, 3, 2}, {.temperature = 0}, random).id, 1);
}

TEST(Sampler, TheSmallestTemperaturesAreNearlyGreedy) {
  base::Random random(1);
  const std::vector<float> logits = {1, 3, 2.9f};
  for (const double temperature : {1e-3, 1e-40, 1e-310}) {
    EXPECT_EQ(draw(logits, {.temperature = temperature}, random).id, 1) << temperature;
    EXPECT_EQ(draw(logits, {.temperature = temperature, .top_p = 0.9}, random).id, 1);
  }
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  base::Random random(1);
  const std::vector<float> logits = {0, std::log(2.0f), std::log(5.0f)};
  std::map<int32_t, int> counts;
  for (int i = 0; i < 40000; ++i) ++counts[draw(logits, {}, random).id];
  EXPECT_NEAR(counts[0] / 40000.0, 0.125, 0.01);
  EXPECT_NEAR(counts[2] / 40000.0, 0.625, 0.01);
}

TEST(Sampler, TopPAndTopKCutTheTail) {
  base::Random random(1);
  const std::vector<float> logits = {0, std::log(2.0f), std::log(5.0f), std::log(2.0f)};
  for (int i = 0; i < 500; ++i) {
    EXPECT_EQ(draw(logits, {.top_p = 0.5}, random).id, 2);
    EXPECT_EQ(draw(logits, {.top_k = 1}, random).id, 2);
    EXPECT_NE(draw(logits, {.top_k = 2}, random).id, 3);  // id 1 ties with 3 and is lower
  }
}

TEST(Sampler, MinPCutsWhatIsFarBelowTheBest) {
  base::Random random(1);
  const std::vector<float> logits = {0, std::log(2.0f), std::log(5.0f), std::log(3.0f)};
  std::map<int32_t, int> counts;
  for (int i = 0; i < 4000; ++i) ++counts[draw(logits, {.min_p = 0.5}, random).id];
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_NEAR(counts[2] / 4000.0, 5.0 / 8, 0.03);
}

// Sorted in full, tokens are cut off at the same places.
TEST(Sampler, CutsWhereASortOfTheWholeVocabularyWould) {
  base::Random random(5);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<float> logits(300);
    const double spread = trial % 3 == 0 ? 0.01 : trial % 3 == 1 ? 3 : 40;
    for (float& logit : logits)
      logit = static_cast<float>(std::round(random.normal() * spread * 4) / 4);
    SamplingOptions options{.temperature = 0.5 + random.uniform()};
    if (trial % 2 == 0) options.top_p = 0.05 + 0.9 * random.uniform();
    if (trial % 5 == 0) options.top_k = 1 + static_cast<int>(random.below(200));
    if (trial % 7 == 0) options.min_p = 0.5 * random.uniform();
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    const auto weight = [&](int32_t id) {
      return std::exp((logits[id] - logits[order[0]]) / options.temperature);
    };
    if (options.top_k > 0) order.resize(options.top_k);
    double mass = 0, taken = 0;
    for (const int32_t id : order) mass += weight(id);
    size_t kept = 0;
    while (kept < order.size() && weight(order[kept]) >= options.min_p &&
           (options.top_p == 1 || taken < options.top_p * mass))
      taken += weight(order[kept++]);
    order.resize(kept);
    const Draw drawn = draw(logits, options, random, true);
    if (order.size() == logits.size()) order.clear();
    EXPECT_EQ(drawn.mask, order) << trial;
    EXPECT_NEAR(drawn.logprob, std::log(weight(drawn.id) / taken), 1e-4);
  }
}

TEST(Sampler, PenaltiesAndBiasMoveLogits) {
  SamplingOptions options{.presence_penalty = 1, .frequency_penalty = 0.5};
  options.logit_bias = {{3, 10}, {1, -2}};
  EXPECT_TRUE(adjusts_logits(options));
  EXPECT_FALSE(adjusts_logits({}));
  std::vector<float> logits = {1, 1, 1, 1};
  adjust_logits(options, std::vector<int32_t>{0, 0, 1}, logits);
  EXPECT_EQ(logits, (std::vector<float>{-1, -2.5, 1, 11}));
}

TEST(Sampler, WhatIsNotAllowedIsNeverDrawn) {
  base::Random random(1);
  std::vector<float> logits(70, 5);
  const std::vector<uint64_t> allowed = {uint64_t{1} << 3, uint64_t{1} << 2};  // 3 and 66
  keep_allowed(allowed, logits);
  std::map<int32_t, int> counts;
  for (int i = 0; i < 1000; ++i) ++counts[draw(logits, {}, random).id];
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_NEAR(counts[3] / 1000.0, 0.5, 0.06);
  EXPECT_EQ(counts[3] + counts[66], 1000);
  for (int i = 0; i < 100; ++i) {
    const auto id = draw(logits, {.temperature = 2, .top_p = 0.9, .top_k = 10}, random).id;
    EXPECT_TRUE(id == 3 || id == 66);
  }
  EXPECT_THROW(keep_allowed(std::vector<uint64_t>(2), logits), Error);
}

TEST(Sampler, ValidateNamesOptionValueAndRange) {
  try {
    validate({.temperature = -1});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "temperature is -1; expected 0 to 2");
  }
  EXPECT_THROW(validate({.top_p = 0}), Error);
  EXPECT_THROW(validate({.num_top_logprobs = 21}), Error);
}

model::Config tiny_config() {
  model::Config c = model::tiny_config();
  c.vocab_size = 60;
  c.hidden_size = 32;
  c.num_nextn_predict_layers = 0;
  c.index_topk = 12;  // sparse beyond 12 tokens
  return c;
}

std::shared_ptr<const model::Model> tiny_model() {
  static const auto model =
      std::make_shared<const model::Model>(model::initialise(tiny_config(), 3));
  return model;
}

struct Answer {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  FinishReason finish_reason;
  std::string error;
  int64_t num_cached_tokens = 0;
  std::vector<TokenRecord> records = {};
};

std::future<Answer> start(Engine& engine, Request request) {
  auto answer = std::make_shared<Answer>();
  auto promise = std::make_shared<std::promise<Answer>>();
  auto future = promise->get_future();
  engine.submit(std::move(request), [answer, promise](const RequestEvent& event) {
    if (event.has_token) {
      answer->ids.push_back(event.token.id);
      answer->logprobs.push_back(event.token.logprob);
      answer->num_cached_tokens = event.num_cached_tokens;
      if (event.record) answer->records.push_back(*event.record);
    }
    if (!event.is_finished) return;
    answer->finish_reason = event.finish_reason;
    answer->error = event.error;
    promise->set_value(*answer);
  });
  return future;
}

Request request_of(int seed, int length) {
  Request request;
  base::Random random(seed);
  for (int i = 0; i < length; ++i) request.prompt.push_back(static_cast<int32_t>(random.below(60)));
  request.sampling.seed = seed;
  request.sampling.logprobs = true;
  request.max_tokens = 20;
  return request;
}

TEST(Engine, ARequestsBitsAreTheSameAloneInACrowdInAnyChunksOnAnyThreads) {
  std::vector<Answer> alone;
  {
    Engine engine(tiny_model());
    for (int i = 0; i < 32; ++i) alone.push_back(start(engine, request_of(i, 1 + i)).get());
  }
  for (auto [chunk, threads] : {std::pair{512, 2}, {40, 1}}) {
    base::set_num_threads(threads);
    Engine engine(tiny_model(), {.max_batch_tokens = chunk});
    std::vector<std::future<Answer>> futures;
    for (int i = 0; i < 32; ++i) futures.push_back(start(engine, request_of(i, 1 + i)));
    for (int i = 0; i < 32; ++i) {
      const Answer crowd = futures[i].get();
      EXPECT_EQ(crowd.ids, alone[i].ids) << i;
      EXPECT_EQ(crowd.logprobs, alone[i].logprobs) << i;
    }
  }
  base::set_num_threads(2);
}

// Real checkpoints: FP8 weights in deploy mode, and the bundled model, whose products two threads
// share out. Half of the prompts begin alike; some are so long that they select their keys.
TEST(Engine, RealModelsGiveTheSameBitsInAnyCrowdFromAnyCache) {
  const std::string root = FATHOM_ROOT;
  for (const auto& [folder, longest] :
       {std::pair{root + "/tests/data/tiny-fp8", 200}, {root + "/models/nano", 700}}) {
    const auto model = std::make_shared<const model::Model>(model::load_checkpoint(folder));
    std::vector<Request> requests;
    for (int i = 0; i < 32; ++i) {
      requests.push_back(request_of(i, i % 8 == 0 ? longest : 1 + i * 5));
      requests.back().max_tokens = 6;
      const Request& first = requests.front();
      if (i % 2 == 0)
        std::copy_n(first.prompt.begin(), std::min<size_t>(140, requests.back().prompt.size()),
                    requests.back().prompt.begin());
    }
    for (const auto format : {model::CacheFormat::kBF16, model::CacheFormat::kFP8}) {
      std::vector<Answer> alone;
      {
        Engine engine(model, {.cache_format = format, .keep_prefixes = false});
        for (const Request& request : requests) alone.push_back(start(engine, request).get());
      }
      int64_t num_cached = 0;
      for (auto [chunk, threads] : {std::pair{512, 2}, {90, 1}}) {
        base::set_num_threads(threads);
        Engine engine(model, {.max_batch_tokens = chunk, .cache_format = format});
        std::vector<std::future<Answer>> futures;
        for (const Request& request : requests) futures.push_back(start(engine, request));
        for (size_t i = 0; i < futures.size(); ++i) {
          const Answer crowd = futures[i].get();
          EXPECT_EQ(crowd.ids, alone[i].ids) << folder << i;
          EXPECT_EQ(crowd.logprobs, alone[i].logprobs) << folder << i;
          num_cached += crowd.num_cached_tokens;
        }
      }
      EXPECT_GT(num_cached, 0) << folder;
    }
  }
  base::set_num_threads(2);
}

std::vector<int32_t> all_routed_experts(const Answer& answer) {
  std::vector<int32_t> all;
  for (const TokenRecord& record : answer.records)
    all.insert(all.end(), record.routed_experts.begin(), record.routed_experts.end());
  return all;
}

// The experts of every position, as one forward pass over prompt and answer chooses them.
std::vector<int32_t> expected_experts(const model::Model& model, std::vector<int64_t> tokens) {
  const torch::NoGradGuard no_grad;
  model::KvCache cache(model.config, model::CacheFormat::kBF16);
  const model::Segment segment{std::ssize(tokens), 0, &cache};
  model::ForwardStatistics experts;
  model::forward(model, torch::tensor(tokens), {&segment, 1}, model::serving_options(model),
                 nullptr, &experts);
  std::vector<int32_t> expected;
  for (size_t position = 0; position < tokens.size(); ++position)
    for (const auto& index_NK : experts.index_NK)
      for (int64_t k = 0; k < index_NK.size(1); ++k)
        expected.push_back(
            static_cast<int32_t>(index_NK[static_cast<int64_t>(position)][k].item<int64_t>()));
  return expected;
}

TEST(Engine, RecordsWhatATrainerNeedsInAnyChunksWithOrWithoutDraftsAndPrefixes) {
  model::Config config = tiny_config();
  config.num_nextn_predict_layers = 1;
  const auto model = std::make_shared<const model::Model>(model::initialise(config, 3));
  Request request = request_of(8, 70);
  request.prompt.resize(40);
  request.record = true;
  for (const auto how : {Speculation::kNone, Speculation::kAlways}) {
    Engine engine(model, {.max_batch_tokens = 16, .speculation = how});
    for (int again = 0; again < 2; ++again) {
      const Answer answer = start(engine, request).get();
      EXPECT_EQ(answer.num_cached_tokens, 0);  // the routing of a prefix is not kept
      ASSERT_EQ(answer.records.size(), answer.ids.size());
      for (size_t i = 0; i < answer.ids.size(); ++i) {
        // Nothing is cut off and the temperature is 1: sampler and model agree.
        EXPECT_NEAR(answer.records[i].sampler_logprob, answer.logprobs[i], 1e-5);
        EXPECT_TRUE(answer.records[i].sampling_mask.empty());
        EXPECT_EQ(answer.records[i].num_moe_layers, 1);
      }
      std::vector<int64_t> tokens(request.prompt.begin(), request.prompt.end());
      tokens.insert(tokens.end(), answer.ids.begin(), answer.ids.end() - 1);
      EXPECT_EQ(all_routed_experts(answer), expected_experts(*model, tokens));
    }
  }
}

TEST(Engine, RecordsTheSamplingMaskAndTheProbabilityWithinIt) {
  Engine engine(tiny_model());
  Request request = request_of(8, 12);
  request.record = true;
  request.sampling.top_k = 5;
  request.sampling.num_top_logprobs = 5;
  const Answer answer = start(engine, request).get();
  for (size_t i = 0; i < answer.ids.size(); ++i) {
    const auto& mask = answer.records[i].sampling_mask;
    ASSERT_EQ(mask.size(), 5u);
    EXPECT_EQ(std::count(mask.begin(), mask.end(), answer.ids[i]), 1);
    EXPECT_GT(answer.records[i].sampler_logprob, answer.logprobs[i]);  // the others' mass is gone
  }
  request.sampling.temperature = 0;
  for (const TokenRecord& record : start(engine, request).get().records) {
    EXPECT_EQ(record.sampler_logprob, 0);
    EXPECT_EQ(record.sampling_mask.size(), 1u);
  }
}

// Only ids that continue an even sum, drafts included: the constraint sees every token in order.
TEST(Engine, AConstraintNarrowsEveryToken) {
  for (const bool speculate : {false, true}) {
    model::Config config = tiny_config();
    config.num_nextn_predict_layers = speculate ? 1 : 0;
    Engine engine(std::make_shared<const model::Model>(model::initialise(config, 3)),
                  {.speculation = speculate ? Speculation::kAlways : Speculation::kNone});
    auto sum = std::make_shared<int64_t>(0);
    auto mask = std::make_shared<std::vector<uint64_t>>(1);
    Request request = request_of(5, 9);
    request.constraint =
        TokenConstraint{[sum, mask] {
                          (*mask)[0] = *sum % 2 == 0 ? 0x5555555555555555 : 0xAAAAAAAAAAAAAAAA;
                          return std::span<const uint64_t>(*mask);
                        },
                        [sum](int32_t id) { *sum += id + 1; }};
    const Answer answer = start(engine, request).get();
    ASSERT_EQ(answer.ids.size(), 20u);
    int64_t expected = 0;
    for (const int32_t id : answer.ids) {
      EXPECT_EQ(id % 2, expected % 2);
      expected += id + 1;
    }
    EXPECT_EQ(*sum, expected);
    request.constraint->allowed = [mask] {
      (*mask)[0] = 0;
      return std::span<const uint64_t>(*mask);
    };
    const Answer refused = start(engine, request).get();
    EXPECT_EQ(refused.finish_reason, FinishReason::kRefused);
    EXPECT_EQ(refused.error, "the constraint leaves no token of the vocabulary");
  }
}

// Rows of a vocabulary entry that is damaged make every logit row damaged.
TEST(Engine, DamagedWeightsFailTheRequestAndLeaveTheEngineUp) {
  model::Config config = tiny_config();
  config.max_position_embeddings = 256;  // a page is full before the logits are asked for
  auto model = std::make_shared<model::Model>(model::initialise(config, 3));
  model->weights.lm_head.weight.data_ptr<float>()[5 * 32] = NAN;
  Engine engine(model);
  for (int i = 0; i < 2; ++i) {
    const Answer answer = start(engine, request_of(i, 100)).get();
    EXPECT_EQ(answer.finish_reason, FinishReason::kFailed);
    EXPECT_EQ(answer.error, "the logits of position 99 are not finite; the weights are damaged");
    EXPECT_TRUE(answer.ids.empty());
  }
  EXPECT_EQ(engine.statistics().num_generated_tokens, 0);
  EXPECT_EQ(engine.statistics().cache_pages_kept, 0);
}

model::Config long_config() {
  model::Config config = tiny_config();
  config.max_position_embeddings = 1024;
  return config;
}

// Prompts that begin alike, with their pages found in the cache or not, in every format; a hit
// changes no bit, and prompts that go on from an answer find that too.
TEST(Engine, APrefixHitChangesNoBit) {
  const auto model = std::make_shared<const model::Model>(model::initialise(long_config(), 3));
  for (const auto format :
       {model::CacheFormat::kF32, model::CacheFormat::kBF16, model::CacheFormat::kFP8}) {
    Engine cold(model, {.cache_format = format, .keep_prefixes = false});
    Engine warm(model, {.max_batch_tokens = 50, .cache_format = format});
    Request request = request_of(1, 200);
    for (const int64_t known : {0, 128, 192}) {
      const Answer expected = start(cold, request).get(), answer = start(warm, request).get();
      EXPECT_EQ(answer.num_cached_tokens, known);
      EXPECT_EQ(expected.num_cached_tokens, 0);
      EXPECT_EQ(answer.ids, expected.ids);
      EXPECT_EQ(answer.logprobs, expected.logprobs);
      if (known == 0) request.prompt[150] ^= 1;
      if (known == 128)
        request.prompt.insert(request.prompt.end(), answer.ids.begin(), answer.ids.end());
    }
  }
}

// Six that come together: the first one's prompt is known by the time the last ones' turn comes.
TEST(Engine, RequestsThatComeTogetherShareTheirPrompt) {
  const auto model = std::make_shared<const model::Model>(model::initialise(long_config(), 3));
  Engine cold(model, {.keep_prefixes = false}), warm(model, {.max_batch_tokens = 100});
  const Request request = request_of(1, 300);
  const Answer expected = start(cold, request).get();
  std::vector<std::future<Answer>> answers;
  for (int i = 0; i < 6; ++i) answers.push_back(start(warm, request));
  int64_t num_cached = 0;
  for (auto& future : answers) {
    const Answer answer = future.get();
    num_cached += answer.num_cached_tokens;
    EXPECT_EQ(answer.ids, expected.ids);
    EXPECT_EQ(answer.logprobs, expected.logprobs);
  }
  EXPECT_EQ(num_cached, 5 * 256);
  EXPECT_EQ(warm.statistics().num_cached_tokens, 5 * 256);
}

TEST(Engine, CancelledRequestsLeaveTheirPages) {
  const auto model = std::make_shared<const model::Model>(model::initialise(long_config(), 3));
  Engine engine(model);
  Request request = request_of(1, 200);
  request.max_tokens = 700;
  std::promise<void> has_begun;
  std::promise<FinishReason> ended;
  std::once_flag first;
  const auto id = engine.submit(request, [&](const RequestEvent& event) {
    std::call_once(first, [&] { has_begun.set_value(); });
    if (event.is_finished) ended.set_value(event.finish_reason);
  });
  has_begun.get_future().wait();
  engine.cancel(id);
  ASSERT_EQ(ended.get_future().get(), FinishReason::kCancelled);
  request.max_tokens = 1;
  EXPECT_EQ(start(engine, request).get().num_cached_tokens, 192);
}

// Drafts change how many passes an answer takes, not the answer: alone, in a crowd, greedy or not,
// up to the last token that the context has room for.
TEST(Engine, SpeculationChangesNoBit) {
  model::Config config = tiny_config();
  config.num_nextn_predict_layers = 1;
  const auto model = std::make_shared<const model::Model>(model::initialise(config, 3));
  Engine plain(model),
      speculating(model, {.max_batch_tokens = 24, .speculation = Speculation::kAlways});
  std::vector<std::future<Answer>> expected, answers;
  for (int i = 0; i < 24; ++i) {
    Request request = request_of(i, 1 + 2 * i);
    if (i % 2) request.sampling.temperature = 0;
    request.max_tokens = 40;
    expected.push_back(start(plain, request));
    answers.push_back(start(speculating, request));
  }
  for (int i = 0; i < 24; ++i) {
    const Answer answer = answers[i].get(), other = expected[i].get();
    EXPECT_EQ(answer.ids, other.ids) << i;
    EXPECT_EQ(answer.logprobs, other.logprobs) << i;
  }
  const auto statistics = speculating.statistics();
  EXPECT_GT(statistics.num_drafted_tokens, 100);
  EXPECT_GT(statistics.num_accepted_tokens, 0);
  EXPECT_LT(statistics.num_accepted_tokens, statistics.num_drafted_tokens);
  EXPECT_THROW(Engine(tiny_model(), {.speculation = Speculation::kAlways}), Error);
}

// Of an untrained MTP layer hardly a draft is the likeliest token, so each costs time: a request
// gives up after a few, and most of those that follow do not begin.
TEST(Engine, DraftsThatDoNotPayEnd) {
  model::Config config = long_config();
  config.num_nextn_predict_layers = 1;
  const auto model = std::make_shared<const model::Model>(model::initialise(config, 3));
  Engine plain(model), engine(model, {.speculation = Speculation::kWherePays});
  Request request = request_of(1, 9);
  request.sampling.temperature = 0;
  request.max_tokens = 300;
  const Answer expected = start(plain, request).get();
  int num_without = 0;
  for (int i = 0; i < 8; ++i) {
    const int64_t before = engine.statistics().num_drafted_tokens;
    const Answer answer = start(engine, request).get();
    EXPECT_EQ(answer.ids, expected.ids);
    EXPECT_EQ(answer.logprobs, expected.logprobs);
    const int64_t num_drafted = engine.statistics().num_drafted_tokens - before;
    EXPECT_LT(num_drafted, 150) << i;
    num_without += num_drafted == 0;
  }
  EXPECT_GT(engine.statistics().num_drafted_tokens, 0);
  EXPECT_GE(num_without, 5);
}

// Rows of logits of untrained weights differ little, so the same random number mostly draws the
// same token of 60 from two of them; the likeliest would seldom be right.
// What the MTP layer makes of a long context depends on how many keys it may select.
TEST(Engine, DraftsSelectTheirKeysToo) {
  model::Config config = long_config();
  config.num_nextn_predict_layers = 1;
  const auto sparse = std::make_shared<const model::Model>(model::initialise(config, 3));
  const torch::NoGradGuard no_grad;
  const torch::Tensor tokens = torch::arange(60), hidden = torch::randn({60, config.hidden_size});
  const auto outputs = [&](bool is_sparse) {
    model::KvCache cache(config);
    const model::Segment segment{60, 0, &cache};
    model::ForwardOptions options = model::serving_options(*sparse);
    options.sparse = is_sparse;
    return model::forward_mtp(*sparse, hidden, tokens, {&segment, 1}, options);
  };
  EXPECT_TRUE(model::serving_options(*sparse).sparse);  // the engine's own
  const torch::Tensor differs = (outputs(true) != outputs(false)).any(1);
  EXPECT_FALSE(differs.narrow(0, 0, config.index_topk).any().item<bool>());
  EXPECT_GT(differs.sum().item<int64_t>(), 40);
}

TEST(Engine, DraftsAreDrawnAsTheTokenWillBe) {
  model::Config config = long_config();
  config.num_nextn_predict_layers = 1;
  Engine engine(std::make_shared<const model::Model>(model::initialise(config, 3)),
                {.speculation = Speculation::kAlways});
  Request request = request_of(1, 9);
  request.max_tokens = 200;
  request.sampling.temperature = 2;
  request.sampling.top_p = 0.98;
  EXPECT_EQ(start(engine, request).get().ids.size(), 200u);
  const auto statistics = engine.statistics();
  EXPECT_GT(statistics.num_drafted_tokens, 100);
  EXPECT_GT(statistics.num_accepted_tokens, statistics.num_drafted_tokens / 3);
}

TEST(Engine, DraftsFollowPenaltiesBiasAndConstraint) {
  model::Config config = long_config();
  config.num_nextn_predict_layers = 1;
  const auto model = std::make_shared<const model::Model>(model::initialise(config, 3));
  const auto all_drafts_are_right = [&](const Request& request) {
    Engine engine(model, {.speculation = Speculation::kAlways});
    EXPECT_EQ(start(engine, request).get().ids.size(), 40u);
    const auto statistics = engine.statistics();
    EXPECT_GT(statistics.num_drafted_tokens, 15);
    // The answer may end before its last draft's place.
    return statistics.num_drafted_tokens - statistics.num_accepted_tokens <= 1;
  };
  Request request = request_of(1, 9);
  request.max_tokens = 40;
  EXPECT_FALSE(all_drafts_are_right(request));
  Request constrained = request;  // to the one id that comes next
  auto next = std::make_shared<int32_t>(7);
  auto mask = std::make_shared<std::vector<uint64_t>>(1);
  constrained.constraint = TokenConstraint{[next, mask] {
                                             (*mask)[0] = uint64_t{1} << *next;
                                             return std::span<const uint64_t>(*mask);
                                           },
                                           [next](int32_t id) { *next = (id + 11) % 60; }};
  EXPECT_TRUE(all_drafts_are_right(constrained));
  request.sampling.temperature = 0;  // 3 and 5 by turns, each drawn down by its own penalty
  request.sampling.logit_bias = {{3, 60}, {5, 59}};
  request.sampling.frequency_penalty = 2;
  EXPECT_TRUE(all_drafts_are_right(request));
}

TEST(Engine, RequestsWaitForRoomInTheCachesAndTooLargeOnesAreRefused) {
  const auto model = std::make_shared<const model::Model>(model::initialise(long_config(), 3));
  const model::CacheLayout layout(long_config(), model::CacheFormat::kBF16);
  Engine engine(model, {.cache_bytes = 6 * layout.page_bytes() + 7});
  std::vector<std::future<Answer>> futures;
  for (int i = 0; i < 12; ++i) futures.push_back(start(engine, request_of(i, 150)));  // 3 pages
  for (auto& future : futures) EXPECT_EQ(future.get().ids.size(), 20u);
  while (engine.statistics().num_running > 0) std::this_thread::yield();
  EXPECT_LE(engine.statistics().cache_pages_kept, 6);
  EXPECT_GT(engine.statistics().cache_pages_kept, 2);
  EXPECT_EQ(start(engine, request_of(1, 380)).get().ids.size(), 4u);  // what the caches hold
  try {
    start(engine, request_of(1, 384));
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "the prompt has 384 tokens; all caches together hold 384");
  }
}

TEST(Engine, StopsAtStopTokensLengthAndContextEnd) {
  Engine engine(tiny_model());
  Request request = request_of(1, 5);
  const Answer full = start(engine, request).get();
  EXPECT_EQ(full.ids.size(), 20u);
  EXPECT_EQ(full.finish_reason, FinishReason::kLength);
  request.stop_token_ids = {full.ids[7]};
  const Answer stopped = start(engine, request).get();
  EXPECT_EQ(stopped.finish_reason, FinishReason::kStop);
  EXPECT_EQ(stopped.ids.back(), full.ids[7]);
  EXPECT_LE(stopped.ids.size(), 8u);
  request = request_of(1, 60);
  EXPECT_EQ(start(engine, request).get().ids.size(), 4u);  // 64 tokens of context
}

TEST(Engine, RefusesWhatItCannotServe) {
  Engine engine(tiny_model());
  const auto message = [&](Request request) -> std::string {
    try {
      start(engine, std::move(request)).get();
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message({}), "the prompt is empty; expected at least one token");
  EXPECT_EQ(message(request_of(1, 64)),
            "the prompt has 64 tokens; the model's context is 64 tokens, at least one of them for "
            "the answer");
  Request request = request_of(1, 3);
  request.prompt[1] = 60;
  EXPECT_EQ(message(request), "token id 60 is outside the vocabulary of 60");
  request = request_of(1, 3);
  request.max_tokens = -5;
  EXPECT_EQ(message(request), "max_tokens is -5; expected at least 1");
}

TEST(Engine, CancelEndsARequestAndShutdownTheRest) {
  std::future<Answer> left;
  {
    Engine engine(tiny_model(), {.max_running_requests = 1});
    std::promise<FinishReason> ended;
    std::promise<void> begun;
    bool has_begun = false;
    Request request = request_of(1, 2);
    request.max_tokens = 60;
    const auto id = engine.submit(request, [&](const RequestEvent& event) {
      if (!has_begun) begun.set_value();
      has_begun = true;
      if (event.is_finished) ended.set_value(event.finish_reason);
    });
    begun.get_future().get();
    engine.cancel(id);
    const FinishReason reason = ended.get_future().get();
    EXPECT_TRUE(reason == FinishReason::kCancelled || reason == FinishReason::kLength);
    left = start(engine, request);
  }
  const Answer answer = left.get();
  EXPECT_TRUE(answer.finish_reason == FinishReason::kCancelled || answer.ids.size() == 60);
}

TEST(Engine, StopEndsWhatRunsAndWhatWaitsAndRefusesTheRest) {
  const auto model = std::make_shared<const model::Model>(model::initialise(long_config(), 3));
  // 1,800 passes are not over before stop() comes.
  Engine engine(model, {.max_batch_tokens = 1, .max_running_requests = 2});
  std::vector<std::future<Answer>> futures;
  for (int i = 0; i < 8; ++i) futures.push_back(start(engine, request_of(i, 900)));
  engine.stop();
  for (auto& future : futures) {
    const Answer answer = future.get();
    EXPECT_EQ(answer.finish_reason, FinishReason::kCancelled);
    EXPECT_TRUE(answer.ids.empty());
  }
  EXPECT_THROW(start(engine, request_of(1, 3)), Stopped);
}

// Sixteen requests over and over from several threads, a third of them cancelled. Each ends once,
// those that were let be with the right tokens, and nothing is left behind.
TEST(Engine, TenThousandShortRequestsInARow) {
  constexpr int kThreads = 4, kEach = 2500, kDifferent = 16;
  const auto short_request = [](int i) {
    Request request = request_of(i % kDifferent, 3 + i % kDifferent);
    request.max_tokens = 2;
    return request;
  };
  Engine engine(tiny_model());
  std::vector<std::vector<int32_t>> expected;
  for (int i = 0; i < kDifferent; ++i)
    expected.push_back(start(engine, short_request(i)).get().ids);
  std::atomic<int> num_ended{0}, num_wrong{0};
  const auto ask = [&](int i) {
    auto ids = std::make_shared<std::vector<int32_t>>();
    return engine.submit(short_request(i), [&, i, ids](const RequestEvent& event) {
      if (event.has_token) ids->push_back(event.token.id);
      if (!event.is_finished) return;
      ++num_ended;
      const auto& right = expected[i % kDifferent];
      const bool is_cut = i % 3 == 0 && event.finish_reason == FinishReason::kCancelled;
      num_wrong += !std::equal(ids->begin(), ids->end(), right.begin(),
                               is_cut ? right.begin() + std::ssize(*ids) : right.end());
    });
  };
  std::vector<std::jthread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      for (int i = t * kEach; i < (t + 1) * kEach;) {
        try {
          const auto id = ask(i);
          if (i++ % 3 == 0) engine.cancel(id);
        } catch (const QueueFull&) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
      }
    });
  threads.clear();
  const auto is_idle = [&] {
    const auto now = engine.statistics();
    return now.num_running + now.num_waiting + now.cache_pages_running == 0;
  };
  for (int i = 0; i < 120'000 && !is_idle(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(is_idle());
  EXPECT_EQ(num_ended, kThreads * kEach);
  EXPECT_EQ(num_wrong, 0);
}

TEST(Engine, AFullQueueIsRefused) {
  Engine engine(tiny_model(), {.max_running_requests = 1, .max_waiting_requests = 1});
  std::vector<std::future<Answer>> futures;
  EXPECT_THROW(
      {
        for (int i = 0; i < 100; ++i) futures.push_back(start(engine, request_of(i, 30)));
      },
      QueueFull);
  for (auto& future : futures) future.wait();
}

}  // namespace
}  // namespace fathom::engine
