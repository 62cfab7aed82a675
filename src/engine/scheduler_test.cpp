#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include "model/test_config.h"

namespace fathom::engine {
namespace {

// `num_prompt` tokens of prompt and `num_generated` of answer, all but the last of them computed;
// without an answer nothing is.
std::unique_ptr<Sequence> sequence_of(int64_t num_prompt, int64_t num_generated) {
  auto sequence = std::make_unique<Sequence>(
      Sequence{0, {}, nullptr, model::KvCache(model::tiny_config()), base::Random(1)});
  sequence->request.prompt.assign(num_prompt, 1);
  sequence->tokens.assign(num_prompt + num_generated, 1);
  sequence->num_pages = 1;
  if (num_generated > 0) sequence->cache.advance(num_prompt + num_generated - 1);
  return sequence;
}

std::vector<int64_t> scheduled(std::vector<std::unique_ptr<Sequence>>& running, int64_t budget) {
  schedule(running, budget, 1000);
  std::vector<int64_t> counts;
  for (const auto& sequence : running) counts.push_back(sequence->num_scheduled);
  return counts;
}

TEST(Schedule, DecodingComesFirstAndPromptsShareWhatIsLeftOldestFirst) {
  std::vector<std::unique_ptr<Sequence>> running;
  running.push_back(sequence_of(50, 0));
  running.push_back(sequence_of(5, 3));
  running.push_back(sequence_of(60, 0));
  EXPECT_EQ(scheduled(running, 61), (std::vector<int64_t>{50, 1, 10}));
  EXPECT_EQ(scheduled(running, 20), (std::vector<int64_t>{19, 1, 0}));
  EXPECT_EQ(schedule(running, 20, 1000).size(), 2u);
}

TEST(Schedule, ADraftNeedsBudgetAndRoomInItsPagesAndTheContext) {
  std::vector<std::unique_ptr<Sequence>> running;
  running.push_back(sequence_of(10, 53));  // 63 tokens: the draft fills the page
  running.push_back(sequence_of(10, 54));
  running.push_back(sequence_of(10, 5));
  for (const auto& sequence : running) sequence->draft = 7;
  EXPECT_EQ(scheduled(running, 100), (std::vector<int64_t>{2, 1, 2}));
  EXPECT_EQ(scheduled(running, 4), (std::vector<int64_t>{2, 1, 1}));
  schedule(running, 100, 16);
  EXPECT_EQ(running[2]->num_scheduled, 2);
  schedule(running, 100, 15);
  EXPECT_EQ(running[2]->num_scheduled, 1);
}

}  // namespace
}  // namespace fathom::engine
