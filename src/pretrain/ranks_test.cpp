#include "pretrain/ranks.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "base/check.h"
#include "pretrain/division.h"
#include "pretrain/sharding.h"
#include "pretrain/test_data.h"

namespace fathom::pretrain {
namespace {

RankPlace place_in(const std::map<std::string, std::string>& variables) {
  return rank_place([&](const char* name) {
    const auto it = variables.find(name);
    return it == variables.end() ? nullptr : it->second.c_str();
  });
}

std::string error_in(const std::map<std::string, std::string>& variables) {
  try {
    place_in(variables);
  } catch (const Error& error) {
    return error.what();
  }
  return "none";
}

TEST(RankPlace, OfTorchrunOpenMpiAndSlurm) {
  EXPECT_EQ(place_in({}).size, 1);
  const RankPlace torchrun = place_in({{"RANK", "5"},
                                       {"WORLD_SIZE", "8"},
                                       {"LOCAL_RANK", "1"},
                                       {"LOCAL_WORLD_SIZE", "4"},
                                       {"MASTER_ADDR", "10.0.0.1"},
                                       {"MASTER_PORT", "29500"},
                                       {"SLURM_PROCID", "0"},
                                       {"SLURM_NTASKS", "2"}});
  EXPECT_EQ(torchrun.rank, 5);
  EXPECT_EQ(torchrun.size, 8);
  EXPECT_EQ(torchrun.local_rank, 1);
  EXPECT_EQ(torchrun.local_size, 4);
  EXPECT_EQ(torchrun.address, "10.0.0.1");
  EXPECT_EQ(torchrun.port, 29500);
  const std::map<std::string, std::string> mpi = {{"OMPI_COMM_WORLD_RANK", "1"},
                                                  {"OMPI_COMM_WORLD_SIZE", "2"},
                                                  {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                                                  {"PMIX_NAMESPACE", "1234"}};
  EXPECT_EQ(place_in(mpi).rank, 1);
  EXPECT_EQ(place_in(mpi).address, "127.0.0.1");
  EXPECT_GE(place_in(mpi).port, 20000);
  auto other_job = mpi;
  other_job["PMIX_NAMESPACE"] = "1235";
  EXPECT_NE(place_in(mpi).port, place_in(other_job).port);
  const RankPlace slurm = place_in({{"SLURM_PROCID", "2"},
                                    {"SLURM_NTASKS", "3"},
                                    {"SLURM_JOB_ID", "77"},
                                    {"MASTER_ADDR", "node1"}});
  EXPECT_EQ(slurm.rank, 2);
  EXPECT_EQ(slurm.address, "node1");
}

TEST(RankPlace, RefusesWhatDoesNotFit) {
  EXPECT_EQ(error_in({{"RANK", "0"}}),
            "RANK is set and WORLD_SIZE is not; expected both or neither");
  EXPECT_EQ(error_in({{"RANK", "2"}, {"WORLD_SIZE", "2"}}),
            "RANK is 2 and WORLD_SIZE is 2; ranks count from 0");
  EXPECT_EQ(error_in({{"RANK", "x"}, {"WORLD_SIZE", "2"}}),
            "RANK is \"x\"; expected a number of at least 0");
  EXPECT_EQ(error_in({{"RANK", "0"}, {"WORLD_SIZE", "2"}}),
            "2 ranks and no MASTER_PORT; set it to a port that is free on rank 0's machine");
  EXPECT_EQ(error_in({{"OMPI_COMM_WORLD_RANK", "0"},
                      {"OMPI_COMM_WORLD_SIZE", "4"},
                      {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}),
            "2 of 4 ranks are on this machine and MASTER_ADDR is not set; set it to the address of "
            "rank 0's machine");
  EXPECT_EQ(error_in({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "70000"}}),
            "MASTER_PORT is 70000; expected a port from 1 to 65535");
}

TEST(Sharding, OwnersHaveAboutAsMuch) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < 100; ++i) sizes.push_back(1 + i * i % 97);
  std::vector<int64_t> load(3);
  const auto owners = balanced_owners(sizes, 3);
  for (size_t i = 0; i < sizes.size(); ++i) load[owners[i]] += sizes[i];
  const int64_t mean = std::accumulate(sizes.begin(), sizes.end(), int64_t{0}) / 3;
  for (int64_t part : load) EXPECT_NEAR(part, mean, 3);
}

TEST(LocalBatch, PartsCutDocumentsAndSumToTheBatch) {
  const model::TrainingBatch whole{
      torch::arange(12),
      torch::tensor({1, 2, 3, -1, 5, 6, 7, 8, 9, 10, 11, -1}, torch::kLong),
      {4, 7, 1},
      {4, 8}};
  const LocalBatch first = local_batch(whole, 0, 2), second = local_batch(whole, 1, 2);
  EXPECT_EQ(first.batch.segment_lengths, (std::vector<int64_t>{4, 2}));
  EXPECT_EQ(first.batch.segment_positions, (std::vector<int64_t>{0, 0}));
  EXPECT_EQ(second.batch.segment_lengths, (std::vector<int64_t>{5, 1}));
  EXPECT_EQ(second.batch.segment_positions, (std::vector<int64_t>{2, 0}));
  EXPECT_EQ(first.batch.sequence_lengths, (std::vector<int64_t>{4, 2}));
  EXPECT_EQ(second.batch.sequence_lengths, (std::vector<int64_t>{0, 6}));
  EXPECT_TRUE(second.batch.tokens_N.equal(torch::arange(6, 12)));
  EXPECT_DOUBLE_EQ(first.share.main, 0.5);
  EXPECT_DOUBLE_EQ(first.share.main + second.share.main, 1);
  EXPECT_DOUBLE_EQ(first.share.mtp + second.share.mtp, 1);
  // The last token of the first part knows the target after its own, which is the other's.
  EXPECT_EQ(first.batch.after_next_N[5].item<int64_t>(), 7);
  const LocalBatch all = local_batch(whole, 0, 1);
  EXPECT_EQ(all.share.main, 1);
  EXPECT_EQ(all.batch.segment_lengths, whole.segment_lengths);
}

// Streams [0, 4) of a step of so many micro-batches: which each has, and how many share one.
std::string shares(int64_t total, int64_t micro_batch_rows) {
  std::string text;
  for (int64_t stream = 0; stream < 4; ++stream) {
    Division division;
    division.stream = stream;
    division.num_streams = 4;
    division.micro_batch_rows = micro_batch_rows;
    const StepShare share = division.share_of(total);
    text +=
        fmt::format("{}+{}/{} ", share.first_micro_batch, share.num_micro_batches, share.num_parts);
  }
  return text;
}

TEST(Division, ABatchThatGrowsIsDividedAsItIs) {
  EXPECT_EQ(shares(1, 4), "0+1/4 0+1/4 0+1/4 0+1/4 ");
  EXPECT_EQ(shares(1, 2), "0+1/1 1+1/1 2+1/1 3+1/1 ");  // from 1 on there is none: for nothing
  EXPECT_EQ(shares(2, 2), "0+1/2 0+1/2 1+1/2 1+1/2 ");
  EXPECT_EQ(shares(3, 4), "0+1/1 1+1/1 2+1/1 3+1/1 ");
  EXPECT_EQ(shares(6, 4), "0+2/1 2+2/1 4+2/1 6+2/1 ");
  EXPECT_EQ(shares(8, 4), "0+2/1 2+2/1 4+2/1 6+2/1 ");
}

}  // namespace
}  // namespace fathom::pretrain
