#include "model/attention_cost.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>

#include "model/test_config.h"
#include "model/transformer.h"

namespace fathom::model {
namespace {

using torch::Tensor;

constexpr AttentionRates kEqual{1e9, 1e9, 1e9, 1e9, 1e9};

Config v32_attention() {
  Config c;
  c.num_attention_heads = 128;
  c.kv_lora_rank = 512;
  c.qk_nope_head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.v_head_dim = 128;
  c.index_n_heads = 64;
  c.index_head_dim = 128;
  c.index_topk = 2048;
  return c;
}

TEST(AttentionCost, CountsOperations) {
  const Config c = v32_attention();
  constexpr double kMasked = 2 * 128 * (192 + 128), kGathered = 2 * 128 * (512 + 64 + 512);
  constexpr double kExpansion = 2 * 128 * 512 * (128 + 128);
  // Three queries behind ten keys see 11 + 12 + 13; nothing is selected.
  const auto few = attention_seconds(c, kEqual, 3, 10);
  EXPECT_NEAR(few.masked, (13 * kExpansion + 36 * kMasked) / 1e9, 1e-9);
  EXPECT_NEAR(few.gathered, (3 * kExpansion + 36 * kGathered) / 1e9, 1e-9);
  // Across top-k: 2,047 and 2,048 keys, then 2,048 of 2,049.
  const auto bend = attention_seconds(c, kEqual, 3, 2046);
  constexpr double kSelect = 2 * 64 * 128 * 6144.0;
  EXPECT_NEAR(bend.gathered, (kSelect + 3 * kExpansion + 6143 * kGathered) / 1e9, 1e-9);
  EXPECT_NEAR(bend.masked, (kSelect + 2049 * kExpansion + 6144 * kMasked) / 1e9, 1e-9);
}

TEST(AttentionCost, TheCrossoverIsWhereTheChoiceChanges) {
  for (const double masked_rate : {0.2e9, 1e9, 5e9}) {
    const AttentionRates rates{1e9, 1e9, masked_rate, 1e9, 1e9};
    for (const int64_t queries : {1, 64, 2048, 10000}) {
      const int64_t at = gathering_crossover(v32_attention(), rates, queries).value();
      for (const int64_t beyond : {0, 1, 1000, 100000})
        EXPECT_EQ(choose_form(v32_attention(), rates, queries, at + beyond), AttentionForm::kMqa);
      if (at > 0) {
        EXPECT_EQ(choose_form(v32_attention(), rates, queries, at - 1), AttentionForm::kMha);
      }
    }
  }
}

// A decoded token never pays for all keys' expansion; a whole sequence's share of it is small.
TEST(AttentionCost, DecodingGathersAndTheBeginningOfASequenceDoesNot) {
  EXPECT_LE(gathering_crossover(v32_attention(), kEqual, 1).value(), 1);
  EXPECT_GT(gathering_crossover(v32_attention(), kEqual, 4096).value(), 0);
  // Expanding a key takes as many products as absorbing a query, so attention alone decides: top-k
  // times the price of a gathered key in masked ones, 2,048 * 1,088 / 320 = 6963.2 keys.
  EXPECT_EQ(whole_sequence_crossover(v32_attention(), kEqual), 6963);
  EXPECT_EQ(whole_sequence_crossover(v32_attention(), {1e9, 1e9, 0.1e9, 1e9, 1e9}), 0);
  // Expanding a key is cheap here and masking dear: masked at the first positions only.
  const auto early = whole_sequence_crossover(v32_attention(), {10e9, 1e9, 0.1e9, 1e9, 1e9});
  ASSERT_TRUE(early.has_value());
  EXPECT_GT(*early, 0);
  EXPECT_LT(*early, v32_attention().index_topk);
  // Masking costs nothing: never gathered.
  EXPECT_FALSE(whole_sequence_crossover(v32_attention(), {1e9, 1e9, 1e30, 1e9, 1e9}).has_value());
}

// The first `masked` tokens in one pass with the mask, the others in one that gathers.
Tensor hidden_of(const Model& model, const Tensor& tokens_N, int64_t masked) {
  const torch::NoGradGuard no_grad;
  KvCache cache(model.config);
  std::vector<Tensor> parts;
  for (int64_t at = 0; at < tokens_N.size(0);) {
    const bool masks = at < masked;
    const int64_t count = masks ? masked : tokens_N.size(0) - at;
    const Segment segment{count, at, &cache};
    parts.push_back(forward(model, tokens_N.narrow(0, at, count), {&segment, 1},
                            {.form = masks ? AttentionForm::kMha : AttentionForm::kMqa}));
    at += count;
  }
  return torch::cat(parts);
}

// Below top-k, at it and beyond, in one pass or with the form changing in between.
TEST(AttentionCost, FormsAgreeAroundTopK) {
  Config config = tiny_config();
  config.index_topk = 20;
  const Model model = initialise(config, 3);
  torch::manual_seed(5);
  const Tensor tokens = torch::randint(50, {40}, torch::kLong);
  for (const int64_t length : {1, 19, 20, 21, 22, 40}) {
    const Tensor part = tokens.narrow(0, 0, length);
    const Tensor gathered = hidden_of(model, part, 0);
    for (const int64_t masked : {length, length / 2}) {
      const Tensor other = hidden_of(model, part, masked);
      EXPECT_LE((gathered - other).abs().max().item<double>(), 2e-5) << length << " " << masked;
    }
  }
}

}  // namespace
}  // namespace fathom::model
