#include "pretrain/run_folder.h"

#include <gtest/gtest.h>

#include <set>

#include "base/check.h"
#include "pretrain/test_data.h"

namespace fathom::pretrain {
namespace {

namespace fs = std::filesystem;

class Checkpoints : public testing::Test {
 protected:
  void save(int64_t step, int64_t keep) const {
    RunFolder(folder_).save({step, 2'000'000, 0, {}}, model_, {}, keep);
  }
  std::set<std::string> names() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) names.insert(entry.path().filename());
    names.erase("latest");
    return names;
  }

  fs::path folder_ = empty_folder("run_folder_" + this_test());
  model::Model model_ =
      model::initialise(model::parse_config(tiny_recipe("data")["model"], "test"), 1);
};

TEST_F(Checkpoints, AreOrderedByTheirNumber) {
  save(999'999, 1);
  save(1'000'000, 1);
  EXPECT_EQ(names(), std::set<std::string>{"step-1000000"});
  EXPECT_EQ(RunFolder(folder_).latest(), folder_ / "step-1000000");
}

TEST_F(Checkpoints, OfARunTurnedBackTheAbandonedGoFirst) {
  for (const int64_t step : {4, 8, 12}) save(step, 3);
  base::write_file_atomically(folder_ / "latest", "step-000004\n");
  save(6, 2);
  EXPECT_EQ(names(), (std::set<std::string>{"step-000004", "step-000006"}));
  base::write_file_atomically(folder_ / "latest", "step-000004\n");
  save(5, 1);
  EXPECT_EQ(names(), std::set<std::string>{"step-000005"});
  EXPECT_EQ(RunFolder(folder_).latest(), folder_ / "step-000005");
}

TEST_F(Checkpoints, AnEmptyLatestIsNamedWithItsRemedy) {
  save(2, 1);
  base::write_file_atomically(folder_ / "latest", "\n");
  try {
    RunFolder(folder_).latest();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), (folder_ / "latest").string() +
                                ": is empty; write the name of a checkpoint of this folder into "
                                "it, as step-000250, or delete the file to start anew");
  }
}

TEST_F(Checkpoints, MetricsThatCannotBeReadAreNamedAndNothingOfThemIsLost) {
  const auto path = folder_ / "metrics.jsonl";
  const std::pair<const char*, const char*> cases[] = {
      {"{\"step\":1,\"loss\":2}\n{\"step\":2,\n{\"step\":3}\n", ": line 2 is not a JSON object"},
      {"{\"step\":\"one\"}\n", ": line 1: \"step\" is \"one\"; expected a number"}};
  for (const auto& [text, message] : cases) {
    base::write_file_atomically(path, text);
    try {
      RunFolder(folder_).begin_metrics({2, 4, 0, {}});
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.what(), path.string() + message);
    }
    EXPECT_EQ(base::read_file(path), text);
  }
}

TEST_F(Checkpoints, WhatIsNotOneIsNotRemoved) {
  for (const char* name : {"step-best", "step-", "step-7b", "step-000001.tmp", "step-best.tmp"})
    fs::create_directories(folder_ / name);
  save(2, 1);
  EXPECT_EQ(names(), (std::set<std::string>{"step-000002", "step-", "step-7b", "step-best",
                                            "step-best.tmp"}));
}

}  // namespace
}  // namespace fathom::pretrain
