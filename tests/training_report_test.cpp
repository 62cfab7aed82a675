#include "bench/training_report.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "base/check.h"
#include "base/file.h"

namespace fathom::bench {
namespace {

namespace fs = std::filesystem;

class TrainingReport : public testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  std::string report_of(const std::string& metrics) const {
    base::write_file_atomically(folder_ / "metrics.jsonl", metrics);
    write_training_report({.runs = {folder_}, .out = folder_ / "report.html"});
    return base::read_file(folder_ / "report.html");
  }

  fs::path folder_ = fs::path(testing::TempDir()) / "fathom_training_report";
};

TEST_F(TrainingReport, HoldsEveryCurveThatARunHas) {
  const std::string html = report_of(
      R"({"step":1,"tokens":64,"seconds":1,"step_seconds":0.5,"learning_rate":0.1,"loss":4,)"
      R"("mtp_loss":4,"gradient_norm":1,"max_violation":0.5,"indexer_loss":2,)"
      R"("indexer_gradient_norm":1,"indexer_recall":0.4,"mtp_divergence":0.4,"mtp_overlap":0.7})"
      "\n"
      R"({"step":1,"validation_loss":4,"validation_bits_per_byte":2,)"
      R"("validation_indexer_recall":[0.5,0.7],"validation_mtp_divergence":0.4,)"
      R"("validation_mtp_overlap":0.7})"
      "\n");
  for (const char* title :
       {"Validation", "Loss", "Loss of the token after the next (MTP)",
        "MTP against the model: KL, training", "MTP against the model: KL, validation",
        "MTP against the model: overlap, training", "MTP against the model: overlap, validation",
        "Indexer: KL from attention", "Indexer: recall of attention's mass, training",
        "Indexer: recall of attention's mass, validation", "Expert balance (MaxVio)",
        "Gradient norm before clipping", "Gradient norm of the indexers", "Learning rate",
        "Time of a step"})
    EXPECT_NE(html.find(std::string(">") + title + "<"), std::string::npos) << title;
  for (const char* other_file : {"src=", "href=", "@import"})
    EXPECT_EQ(html.find(other_file), std::string::npos) << other_file;
}

// What a run does not have is left out; what it has but an old program did not write is derived.
TEST_F(TrainingReport, DerivesTheTimeOfAStepOfOlderRuns) {
  const std::string html = report_of(
      "{\"step\":1,\"tokens\":64,\"seconds\":1}\n"
      "{\"step\":2,\"tokens\":128,\"seconds\":3}\n");
  EXPECT_NE(html.find(">Time of a step<"), std::string::npos);
  EXPECT_EQ(html.find(">Loss<"), std::string::npos);
}

// A run under way, or killed; its checkpoints may be gone, too.
TEST_F(TrainingReport, DrawsWhatARunHasWrittenSoFar) {
  const std::string metrics = "{\"step\":1,\"tokens\":64,\"loss\":4}\n{\"st";
  const std::string without = report_of(metrics);
  EXPECT_NE(without.find(">Loss<"), std::string::npos);
  EXPECT_NE(without.find("<td>unknown</td><td>1</td><td>64</td>"), std::string::npos) << without;
  for (const char* latest : {"step-000001\n", "\n"}) {
    base::write_file_atomically(folder_ / "latest", latest);
    EXPECT_EQ(report_of(metrics), without);
  }
}

TEST_F(TrainingReport, NamesTheLineThatCannotBeRead) {
  for (const auto& [line, what] : {
           std::pair("{\"st", " is not a JSON object"),
           std::pair("{\"step\":\"2\"}", ": \"step\" is \"2\"; expected a number"),
           std::pair("{\"tokens\":[64]}", ": \"tokens\" is [64]; expected a number"),
           std::pair("{\"loss\":[4,\"4\"]}",
                     ": \"loss\" is [4,\"4\"]; expected a number or a list of numbers"),
       }) {
    try {
      report_of(fmt::format("{{\"step\":1}}\n{}\n{{\"step\":3}}\n", line));
      FAIL() << line;
    } catch (const Error& error) {
      EXPECT_EQ(error.what(), (folder_ / "metrics.jsonl").string() + ": line 2" + what);
    }
  }
}

}  // namespace
}  // namespace fathom::bench
