#include "pretrain/schedule.h"

#include <gtest/gtest.h>

namespace fathom::pretrain {
namespace {

TEST(Schedule, WarmUpPlateauDecay) {
  TrainingRecipe recipe;
  recipe.warmup_steps = 4;
  recipe.decay_fraction = 0.2;
  recipe.final_fraction = 0.1;
  const auto factor = [&](int64_t step) { return learning_rate_factor(recipe, step, 100); };
  EXPECT_DOUBLE_EQ(factor(0), 0.25);
  EXPECT_DOUBLE_EQ(factor(3), 1);
  EXPECT_DOUBLE_EQ(factor(4), 1);
  EXPECT_DOUBLE_EQ(factor(80), 1);
  EXPECT_DOUBLE_EQ(factor(90), 0.55);
  EXPECT_NEAR(factor(99), 0.1 + 0.9 / 20, 1e-12);
  EXPECT_DOUBLE_EQ(factor(100), 0.1);
}

TEST(Schedule, Cosine) {
  TrainingRecipe recipe;
  recipe.schedule = "cosine";
  recipe.warmup_steps = 10;
  recipe.final_fraction = 0;
  const auto factor = [&](int64_t step) { return learning_rate_factor(recipe, step, 110); };
  EXPECT_DOUBLE_EQ(factor(4), 0.5);
  EXPECT_DOUBLE_EQ(factor(10), 1);
  EXPECT_NEAR(factor(35), 0.5 + 0.5 * std::sqrt(0.5), 1e-12);  // cos(45 degrees)
  EXPECT_NEAR(factor(60), 0.5, 1e-12);
  EXPECT_NEAR(factor(110), 0, 1e-12);
}

TEST(Schedule, NoWarmUpAndNoDecay) {
  TrainingRecipe recipe;
  recipe.warmup_steps = 0;
  recipe.decay_fraction = 0;
  EXPECT_DOUBLE_EQ(learning_rate_factor(recipe, 0, 5), 1);
  EXPECT_DOUBLE_EQ(learning_rate_factor(recipe, 4, 5), 1);
}

// The defaults are what a recipe without these keys always did.
TEST(Schedule, DefaultsChangeNothing) {
  const TrainingRecipe recipe;
  for (const int64_t step : {0, 1, 500, 999}) {
    EXPECT_EQ(rows_of(recipe, step), recipe.batch_rows);
    EXPECT_EQ(rows_before(recipe, step), step * recipe.batch_rows);
    EXPECT_EQ(sequence_length_at(recipe, step), recipe.sequence_length);
    EXPECT_EQ(mtp_weight_at(recipe, step, 1000), recipe.mtp_weight);
    EXPECT_EQ(expert_bias_rate_at(recipe, step, 1000), recipe.expert_bias_rate);
  }
}

TEST(Schedule, TheBatchGrowsInWholeMicroBatches) {
  TrainingRecipe recipe;
  recipe.batch_rows = 10;
  recipe.micro_batch_rows = 2;
  recipe.first_batch_rows = 4;
  recipe.batch_growth_steps = 6;
  const int64_t expected[] = {4, 4, 6, 6, 8, 8, 10, 10, 10};
  int64_t before = 0;
  for (int64_t step = 0; step < std::ssize(expected); ++step) {
    EXPECT_EQ(rows_of(recipe, step), expected[step]) << step;
    EXPECT_EQ(rows_before(recipe, step), before) << step;
    EXPECT_EQ(tokens_before(recipe, step), before * recipe.sequence_length) << step;
    before += expected[step];
  }
}

TEST(Schedule, TheSequenceDoublesUntilItIsWhole) {
  TrainingRecipe recipe;
  recipe.sequence_length = 1000;
  recipe.first_sequence_length = 200;  // 200, 400, 800, then the whole row
  recipe.length_growth_steps = 9;
  const int64_t expected[] = {200, 200, 200, 400, 400, 400, 800, 800, 800, 1000, 1000};
  for (int64_t step = 0; step < std::ssize(expected); ++step)
    EXPECT_EQ(sequence_length_at(recipe, step), expected[step]) << step;
}

// The report's: lambda 0.3 for the first 10T tokens, then 0.1; gamma 0 for the last 500B of 14.8T.
TEST(Schedule, MtpWeightAndBiasRateChangeAtTheirShares) {
  TrainingRecipe recipe;
  recipe.late_mtp_fraction = 4.8 / 14.8;
  recipe.fixed_bias_fraction = 0.5 / 14.8;
  const auto mtp = [&](int64_t step) { return mtp_weight_at(recipe, step, 1480); };
  const auto gamma = [&](int64_t step) { return expert_bias_rate_at(recipe, step, 1480); };
  EXPECT_EQ(mtp(0), 0.3);
  EXPECT_EQ(mtp(999), 0.3);
  EXPECT_EQ(mtp(1001), 0.1);
  EXPECT_EQ(mtp(1479), 0.1);
  EXPECT_EQ(gamma(1429), 1e-3);
  EXPECT_EQ(gamma(1431), 0);
}

}  // namespace
}  // namespace fathom::pretrain
