// Several processes train as one does: the same curve, also after one of them was killed, and on
// another number of them.
#include "base/free_port.h"
#include "rank_runs.h"

namespace fathom {
namespace {

const std::vector<std::string> kTwoRanks = {"--nproc", "2"};

std::vector<std::string> joined(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Every stage on one rank and on two, from the same model.
class RankStages : public RankRuns {
 protected:
  // With sums in another order, Muon's products, in bf16 whatever the recipe says, make a thousand
  // times more of the last bit than AdamW does.
  void sum_in_another_order() { json_["optimizer"]["matrices"] = "adamw"; }
  void expect_equal_stages(const std::vector<std::string>& flags) {
    train("dense");
    train("dense_ranks", flags);
    expect_near_curves("dense", "dense_ranks", 12, 1e-5);
    for (const std::string stage : {"warmup", "sparse"}) {
      const std::string before = stage == "warmup" ? "dense" : "warmup";
      const std::vector<std::string> begin = {"--stage", stage, "--init", latest(before)};
      train(stage, begin);
      train(stage + "_ranks", joined(begin, flags));
      expect_near_curves(stage, stage + "_ranks", 12, 1e-5);
    }
  }
};

// Two micro-batches each: one rank adds up four one by one, two add two sums of two.
TEST_F(RankStages, TwoRanksGiveTheCurveOfOne) {
  sum_in_another_order();
  json_["training"]["micro_batch_rows"] = 1;
  expect_equal_stages(kTwoRanks);
}

// One micro-batch each, so that there is only one sum: with Muon, too.
TEST_F(RankStages, TwoRanksOfAMicroBatchEachGiveTheCurveOfOne) { expect_equal_stages(kTwoRanks); }

TEST_F(RankStages, TwoRanksShareAMicroBatch) {
  sum_in_another_order();
  json_["training"]["micro_batch_rows"] = 4;
  json_["training"]["document_masking"] = true;
  expect_equal_stages(kTwoRanks);
}

TEST_F(RankStages, ExpertsOfTwoRanks) {
  sum_in_another_order();
  expect_equal_stages({"--nproc", "2", "--expert-parallel", "2"});
}

TEST_F(RankStages, TwoRanksShareTheTokensOfARow) {
  sum_in_another_order();
  json_["training"]["micro_batch_rows"] = 1;
  expect_equal_stages({"--nproc", "2", "--sequence-parallel", "2"});
}

// Documents of any length across the ranks' border, and every kind of sharing at once.
TEST_F(RankStages, FourRanksShareDocumentsAndExperts) {
  sum_in_another_order();
  json_["training"]["document_masking"] = true;
  expect_equal_stages({"--nproc", "4", "--sequence-parallel", "2", "--expert-parallel", "4"});
}

// MTP against the model: by whole rows, experts shared or not.
TEST_F(RankStages, TwoRanksFitMtpAsOneDoes) {
  sum_in_another_order();
  train("dense");
  const std::vector<std::string> begin = {"--stage", "mtp", "--init", latest("dense")};
  train("one", begin);
  EXPECT_EQ(metrics("one", "mtp_overlap").size(), 12u);
  train("two", joined(begin, kTwoRanks));
  train("experts", joined(begin, {"--nproc", "2", "--expert-parallel", "2"}));
  for (const char* run : {"two", "experts"}) expect_near_curves("one", run, 12, 1e-5);
  // A micro-batch whose rows the ranks share, of documents that do not divide evenly.
  json_["training"].update({{"micro_batch_rows", 4}, {"document_masking", true}});
  train("one_whole", begin);
  train("two_halves", joined(begin, kTwoRanks));
  expect_near_curves("one_whole", "two_halves", 12, 1e-5);
  Process tokens(command("tokens", joined(begin, {"--nproc", "2", "--sequence-parallel", "2"})), {},
                 folder_ / "tokens.log");
  EXPECT_EQ(tokens.wait(), 1);
  EXPECT_NE(tokens.output().find("--sequence-parallel is 2; the mtp stage"), std::string::npos)
      << tokens.output();
}

TEST_F(RankRuns, MoreRanksThanTheMachineCanFeedAreNotStarted) {
  Process many(command("many", {"--nproc", "1000"}), {}, folder_ / "many.log");
  EXPECT_EQ(many.wait(std::chrono::seconds(20)), 1);
  EXPECT_NE(many.output().find("--nproc is 1000; this machine has"), std::string::npos)
      << many.output();
  EXPECT_FALSE(fs::exists(folder_ / "many"));
}

TEST_F(RankRuns, ResumesToTheSameBitsAndOnOtherNumbersOfRanks) {
  train("straight", kTwoRanks);
  train("half", joined({"--stop-after-step", "6"}, kTwoRanks));
  EXPECT_TRUE(fs::exists(latest("half") + "/optimizer-00002-of-00002.safetensors"));
  for (const char* copy : {"two", "one"})
    fs::copy(folder_ / "half", folder_ / copy, fs::copy_options::recursive);
  train("two", kTwoRanks);
  for (const char* file : {"model.safetensors", "optimizer-00001-of-00002.safetensors",
                           "optimizer-00002-of-00002.safetensors"})
    EXPECT_TRUE(base::read_file(folder_ / "two/step-000012" / file) ==
                base::read_file(folder_ / "straight/step-000012" / file))
        << file;
  train("one");
  EXPECT_TRUE(fs::exists(latest("one") + "/optimizer.safetensors"));
  expect_near_curves("straight", "one", 12, 1e-5);
  fs::remove(latest("half") + "/optimizer-00002-of-00002.safetensors");
  Process incomplete(command("half"), {}, folder_ / "incomplete.log");
  EXPECT_EQ(incomplete.wait(), 1);
  EXPECT_NE(incomplete.output().find("optimizer-00002-of-00002.safetensors: is missing"),
            std::string::npos)
      << incomplete.output();
}

// Muon's loss with its sums in another order: up to 1.6e-3 apart over 12 steps.
TEST_F(RankStages, MuonStaysNearWhereRanksShareEverything) {
  json_["training"]["document_masking"] = true;
  train("one");
  train("four", {"--nproc", "4", "--sequence-parallel", "2", "--expert-parallel", "4"});
  const auto one = metrics("one", "loss"), four = metrics("four", "loss");
  ASSERT_EQ(one.size(), four.size());
  EXPECT_NEAR(one[0]["loss"].get<double>(), four[0]["loss"].get<double>(), 1e-5);
  for (size_t i = 1; i < one.size(); ++i)
    EXPECT_NEAR(one[i]["loss"].get<double>(), four[i]["loss"].get<double>(), 5e-3) << i;
}

// Steps of one micro-batch to four, of which some do not divide, and sequences that reach over
// ranks, each with a balance loss of its own.
TEST_F(RankStages, GrowingBatchesAndSequencesGiveTheCurveOfOne) {
  sum_in_another_order();
  json_["training"].update({{"batch_rows", 8},
                            {"first_batch_rows", 2},
                            {"batch_growth_steps", 8},
                            {"first_sequence_length", 16},
                            {"length_growth_steps", 8},
                            {"balance", "sequence"},
                            {"balance_weight", 0.1},
                            {"late_mtp_fraction", 0.4},
                            {"fixed_bias_fraction", 0.2}});
  train("one");
  train("two", kTwoRanks);
  train("tokens", joined({"--sequence-parallel", "2"}, kTwoRanks));
  train("four", {"--nproc", "4", "--expert-parallel", "4"});
  train("all", {"--nproc", "4", "--sequence-parallel", "2", "--expert-parallel", "2"});
  for (const char* run : {"two", "tokens", "four", "all"}) expect_near_curves("one", run, 12, 1e-5);
}

// Two ranks by hand, as torchrun starts them; one is killed.
class KilledRank : public RankRuns, public testing::WithParamInterface<int> {
 protected:
  std::map<std::string, std::string> environment(int rank, const std::string& port) const {
    return {{"RANK", std::to_string(rank)},
            {"WORLD_SIZE", "2"},
            {"MASTER_ADDR", "127.0.0.1"},
            {"MASTER_PORT", port}};
  }
  // A checkpoint is written beside the steps after it.
  bool wait_for_checkpoint(const std::string& run) const {
    const fs::path latest = folder_ / run / "latest";
    for (int i = 0; i < 6000 && !fs::exists(latest); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return fs::exists(latest);
  }
};

TEST_P(KilledRank, EndsTheOtherAndTheRunGoesOn) {
  json_["training"]["steps"] = 100000;
  json_["training"]["schedule"] = "wsd";
  const int killed = GetParam(), left = 1 - killed;
  const std::string port = std::to_string(base::free_port());
  {
    Process first(command("run"), environment(0, port), folder_ / "0.log");
    Process second(command("run"), environment(1, port), folder_ / "1.log");
    Process& lost = killed == 0 ? first : second;
    Process& other = killed == 0 ? second : first;
    ASSERT_TRUE(wait_for_checkpoint("run")) << first.output() << second.output();
    lost.send(SIGKILL);
    ASSERT_EQ(lost.wait(), 128 + SIGKILL);
    EXPECT_EQ(other.wait(std::chrono::seconds(30)), 1) << "rank " << left;
    const std::string text = other.output();
    EXPECT_NE(text.find("rank " + std::to_string(killed) + " of 2 is gone"), std::string::npos)
        << text;
    EXPECT_NE(text.find("; the last checkpoint is "), std::string::npos) << text;
    EXPECT_NE(text.find("start the same command again"), std::string::npos) << text;
    printf("%s\n", text.substr(text.rfind("fathom: ")).c_str());
  }
  fs::copy(folder_ / "run", folder_ / "two", fs::copy_options::recursive);
  const int64_t step = base::read_json_file(latest("run") + "/trainer.json")["step"];
  const std::vector<std::string> a_little = {"--stop-after-step", std::to_string(step + 4)};
  train("run", a_little);
  train("two", joined(a_little, kTwoRanks));
  expect_near_curves("run", "two", step + 4, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Ranks, KilledRank, testing::Values(0, 1));

TEST_F(RankRuns, TheLauncherReturnsTheExitCodeAndPassesSignalsOn) {
  json_["training"]["micro_batch_rows"] = 1;
  json_["training"]["batch_rows"] = 5;
  Process refused(command("refused", kTwoRanks), {}, folder_ / "refused.log");
  EXPECT_EQ(refused.wait(), 1);
  EXPECT_NE(refused.output().find("do not divide over 2 ranks"), std::string::npos)
      << refused.output();
  json_["training"]["batch_rows"] = 4;
  json_["training"]["steps"] = 100000;
  Process ended(command("ended", kTwoRanks), {}, folder_ / "ended.log");
  while (metrics("ended", "loss").empty())
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ended.send(SIGTERM);
  EXPECT_EQ(ended.wait(std::chrono::seconds(30)), 128 + SIGTERM) << ended.output();
}

// Saved where it stopped, and nothing of its curve is lost or done twice.
TEST_F(RankRuns, StoppedBySignalsItGoesOnFromThatStep) {
  json_["training"].update({{"steps", 100000}, {"checkpoint_every", 100000}});
  for (const int num_ranks : {1, 2}) {
    const std::vector<std::string> ranks = {"--nproc", std::to_string(num_ranks)};
    const std::string name = "stopped_" + ranks[1], straight = "straight_" + ranks[1];
    const int signal = num_ranks == 1 ? SIGINT : SIGTERM;
    Process stopped(command(name, ranks), {}, folder_ / "stopped.log");
    while (metrics(name, "loss").size() < 3)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    stopped.send(signal);
    EXPECT_EQ(stopped.wait(std::chrono::seconds(30)), 128 + signal) << stopped.output();
    const int64_t step = metrics(name, "loss").back()["step"];
    const std::string message = "stopped at step " + std::to_string(step) + ", saved in";
    EXPECT_NE(stopped.output().find(message), std::string::npos) << stopped.output();
    EXPECT_TRUE(latest(name).ends_with("0" + std::to_string(step))) << latest(name);
    const auto until = joined(ranks, {"--stop-after-step", std::to_string(step + 3)});
    train(name, until);
    train(straight, until);
    const auto expected = metrics(straight, "loss"), found = metrics(name, "loss");
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(found[i]["step"], expected[i]["step"]);
      EXPECT_EQ(found[i]["loss"], expected[i]["loss"]) << i;
    }
  }
}

TEST_F(RankRuns, MpirunStartsThem) {
  if (access("/usr/bin/mpirun", X_OK) != 0) GTEST_SKIP() << "make setup installs openmpi-bin";
  train("one");
  auto words = command("mpi");
  words.insert(words.begin(), {"mpirun", "-n", "2", "--oversubscribe"});
  Process process(words, {{"OMPI_ALLOW_RUN_AS_ROOT", "1"}, {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"}},
                  folder_ / "mpi.log");
  ASSERT_EQ(process.wait(), 0) << process.output();
  EXPECT_TRUE(fs::exists(latest("mpi") + "/optimizer-00002-of-00002.safetensors"));
  expect_near_curves("one", "mpi", 12, 1e-5);
}

}  // namespace
}  // namespace fathom
