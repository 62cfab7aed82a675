#include "engine/draft_policy.h"

#include <gtest/gtest.h>

namespace fathom::engine {
namespace {

TEST(DraftRate, FollowsWhatCameOfLate) {
  DraftRate rate;
  EXPECT_EQ(rate.share(), 1);
  EXPECT_FALSE(rate.is_known());
  for (int i = 0; i < 1000; ++i) rate.count(i % 4 != 0);
  EXPECT_TRUE(rate.is_known());
  EXPECT_NEAR(rate.share(), 0.75, 0.02);
  for (int i = 0; i < 100; ++i) rate.count(false);
  EXPECT_LT(rate.share(), 0.25);
  for (int i = 0; i < 200; ++i) rate.count(true);
  EXPECT_GT(rate.share(), 0.9);
}

TEST(DraftRate, BeginsAsItIsTold) {
  DraftRate rate(64, 0.25);
  EXPECT_EQ(rate.share(), 0.25);
  for (int i = 0; i < 15; ++i) rate.count(true);
  EXPECT_FALSE(rate.is_known());
  rate.count(true);
  EXPECT_TRUE(rate.is_known());
  EXPECT_EQ(rate.share(), 0.625);
}

TEST(DraftRate, AShortWindowForgetsSooner) {
  DraftRate near(32), far(1024);
  for (int i = 0; i < 1000; ++i) near.count(true), far.count(true);
  for (int i = 0; i < 20; ++i) near.count(false), far.count(false);
  EXPECT_LT(near.share(), 0.6);
  EXPECT_GT(far.share(), 0.95);
}

void record_steps(DraftCost& cost, int64_t num_sequences, int count, double plain, double checking,
                  double drafting) {
  for (int i = 0; i < count; ++i) {
    cost.record_pass(num_sequences, true, checking);
    cost.record_drafting(num_sequences, drafting);
    cost.record_pass(num_sequences, false, plain);
  }
}

TEST(DraftCost, IsTheMedianOfComparisonsOnceEnoughAreKnown) {
  DraftCost cost;
  EXPECT_EQ(cost.plain_passes(1), 0);
  record_steps(cost, 1, 4, 1, 1.25, 0.5);
  EXPECT_EQ(cost.plain_passes(1), 0);
  record_steps(cost, 1, 1, 1, 1.25, 0.5);
  EXPECT_EQ(cost.plain_passes(1), 1.75);
  record_steps(cost, 1, 2, 1, 100, 0.5);
  EXPECT_EQ(cost.plain_passes(1), 1.75);
  record_steps(cost, 1, 9, 2, 2, 0.5);
  EXPECT_EQ(cost.plain_passes(1), 1.25);
}

// Half as fast, it is as slow with drafts as without.
TEST(DraftCost, AMachineThatSlowsDownMisleadsLittle) {
  DraftCost cost;
  for (int i = 0; i < 9; ++i)
    record_steps(cost, 1, 1, 1 << i % 3, 1.25 * (1 << i % 3), 0.25 * (1 << i % 3));
  EXPECT_EQ(cost.plain_passes(1), 1.5);
}

TEST(DraftCost, ComparesNothingWithoutDrafts) {
  DraftCost cost;
  for (int i = 0; i < 100; ++i) cost.record_pass(1, false, 1);
  EXPECT_EQ(cost.plain_passes(1), 0);
  EXPECT_FALSE(cost.wants_plain_pass(1));
}

TEST(DraftCost, IsOfAsManySequencesOnly) {
  DraftCost cost;
  record_steps(cost, 1, 9, 1, 1.5, 0.25);
  record_steps(cost, 9, 9, 1, 2.5, 0.5);
  EXPECT_EQ(cost.plain_passes(1), 1.75);
  EXPECT_EQ(cost.plain_passes(2), 0);
  EXPECT_EQ(cost.plain_passes(8), 3);
  EXPECT_EQ(cost.plain_passes(15), 3);
  EXPECT_EQ(cost.plain_passes(16), 0);
  record_steps(cost, 100'000, 9, 1, 1, 1);
  EXPECT_EQ(cost.plain_passes(50'000), 2);
}

TEST(DraftCost, ComparesOftenAtFirstAndThenNowAndThen) {
  DraftCost cost;
  const auto passes_until_plain = [&] {
    for (int count = 0;; ++count) {
      if (cost.wants_plain_pass(3) || count == 1000) return count;
      cost.record_pass(3, true, 1);
      cost.record_drafting(3, 1);
    }
  };
  for (int i = 0; i < 9; ++i) {
    EXPECT_EQ(passes_until_plain(), 2) << i;
    cost.record_pass(3, false, 1);
  }
  EXPECT_EQ(passes_until_plain(), 64);
  EXPECT_FALSE(cost.wants_plain_pass(4));
}

}  // namespace
}  // namespace fathom::engine
