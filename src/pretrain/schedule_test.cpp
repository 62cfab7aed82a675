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

}  // namespace
}  // namespace fathom::pretrain
