#include "bench/experiment_report.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "base/file.h"

namespace fathom::bench {
namespace {

namespace fs = std::filesystem;

class ExperimentReport : public testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(folder_);
    write_run(1, "dense", {{1.0, 0.9}, {0.5, 0.9}});
    write_run(2, "dense", {{1.0, 0.9}, {0.7, 0.9}});
    write_run(1, "sparse", {{1.2, 0.8}, {0.66, 0.8}});
  }
  void write_run(int seed, const std::string& arm,
                 const std::vector<std::pair<double, double>>& run) {
    std::string text;
    int64_t step = 0;
    for (const auto& [loss, recall] : run) {
      ++step;
      text += Json{{"step", step}, {"tokens", 100 * step}, {"norm", 3 - step}}.dump() + "\n";
      text += Json{{"step", step}, {"loss", loss}, {"recall", {recall, 1.0}}}.dump() + "\n";
    }
    const fs::path path = folder_ / "runs" / ("seed-" + std::to_string(seed)) / arm;
    fs::create_directories(path);
    base::write_file_atomically(path / "metrics.jsonl", text);
  }
  Json report() const {
    base::write_file_atomically(folder_ / "e.json", file_.dump());
    return report_experiment({folder_ / "e.json", folder_ / "runs", folder_ / "out"});
  }
  std::string verdict(const Json& criterion) {
    file_["pass"] = {criterion};
    return report()["pass"][0]["verdict"];
  }

  fs::path folder_ = fs::path(testing::TempDir()) /
                     (std::string("fathom_experiment_") +
                      testing::UnitTest::GetInstance()->current_test_info()->name());
  Json file_ = {{"title", "E"},
                {"seeds", {1, 2}},
                {"arms", {"dense", "sparse", "late"}},
                {"metrics",
                 {{{"name", "loss"}, {"key", "loss"}, {"curve", true}},
                  {{"name", "recall"}, {"key", "recall"}},
                  {{"name", "norm"}, {"key", "norm"}, {"take", "max"}}}},
                {"pass", {{{"what", "w"}, {"metric", "loss"}, {"of", "dense"}, {"at_most", 1}}}}};
};

TEST_F(ExperimentReport, MeansAndDeviationsOverTheSeeds) {
  const Json arms = report()["arms"];
  EXPECT_EQ(arms["dense"]["seeds"], 2);
  EXPECT_NEAR(arms["dense"]["loss"]["mean"], 0.6, 1e-9);
  EXPECT_NEAR(arms["dense"]["loss"]["deviation"], 0.2 / std::sqrt(2), 1e-9);
  EXPECT_EQ(arms["dense"]["norm"]["mean"], 2);  // the largest, not the last
  EXPECT_NEAR(arms["sparse"]["recall"]["mean"], 0.9, 1e-9);
  EXPECT_EQ(arms["sparse"]["recall"]["by_layer"][0][0], 0.8);
  EXPECT_EQ(arms["late"]["seeds"], 0);
}

TEST_F(ExperimentReport, Verdicts) {
  const Json over = {{"what", "w"}, {"metric", "loss"}, {"of", "sparse"}, {"over", "dense"}};
  const auto with = [&](const char* key, double bound) {
    Json criterion = over;
    criterion[key] = bound;
    return criterion;
  };
  EXPECT_EQ(verdict(with("at_most", 1.11)), "passed");  // 0.66 / 0.6
  EXPECT_EQ(verdict(with("at_most", 1.09)), "failed");
  EXPECT_EQ(verdict(with("at_least", 1.09)), "passed");
  EXPECT_EQ(verdict(with("at_least", 1.11)), "failed");
  EXPECT_EQ(verdict({{"what", "w"},
                     {"metric", "loss"},
                     {"of", "sparse"},
                     {"minus", "dense"},
                     {"at_most", 0.07}}),
            "passed");
  EXPECT_EQ(verdict({{"what", "w"},
                     {"metric", "norm"},
                     {"of", "dense"},
                     {"over", "dense"},
                     {"other_metric", "loss"},
                     {"at_least", 3.3}}),
            "passed");  // 2 / 0.6
  EXPECT_EQ(verdict({{"what", "w"}, {"metric", "loss"}, {"of", "late"}, {"at_most", 9}}),
            "not run");
}

TEST_F(ExperimentReport, WritesATableAndCurves) {
  file_["pass"] = {
      {{"what", "loss of sparse"}, {"metric", "loss"}, {"of", "sparse"}, {"at_most", 9}}};
  report();
  const std::string table = base::read_file(folder_ / "out/e.md");
  EXPECT_NE(table.find("| dense | 2 | 0.6000 ± 0.1414 |"), std::string::npos) << table;
  EXPECT_NE(table.find("| loss of sparse | 0.6600 | at most 9 | passed |"), std::string::npos);
  EXPECT_NE(table.find("\n| recall, by layer | |\n|---|---|\n| dense | 0.9000 1.0000 |\n"
                       "| sparse | 0.8000 1.0000 |\n"),
            std::string::npos)
      << table;
  const std::string svg = base::read_file(folder_ / "out/e.svg");
  EXPECT_NE(svg.find(">sparse</text>"), std::string::npos);
  EXPECT_EQ(base::read_json_file(folder_ / "out/e.json")["title"], "E");
}

TEST_F(ExperimentReport, RefusesWhatItCannotJudge) {
  const auto error_of = [&](const Json& criterion) {
    try {
      verdict(criterion);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(error_of({{"what", "w"}, {"metric", "loss"}, {"of", "dens"}, {"at_most", 1}})
                .find("names the arm \"dens\", which is not declared"),
            std::string::npos);
  EXPECT_NE(error_of({{"what", "w"}, {"metric", "loss"}, {"of", "dense"}})
                .find("has neither at_most nor at_least"),
            std::string::npos);
  EXPECT_NE(error_of({{"what", "w"}, {"metric", "los"}, {"of", "dense"}, {"at_most", 1}})
                .find("names the metric \"los\", which is not declared"),
            std::string::npos);
  file_["metrics"][0]["take"] = "first";
  EXPECT_NE(error_of({{"what", "w"}, {"metric", "loss"}, {"of", "dense"}, {"at_most", 1}})
                .find("expected last, max or mean"),
            std::string::npos);
  EXPECT_THROW(report_experiment({folder_ / "e.json", folder_ / "typo", folder_ / "out"}), Error);
  fs::create_directories(folder_ / "empty");
  EXPECT_THROW(report_experiment({folder_ / "e.json", folder_ / "empty", folder_ / "out"}), Error);
  EXPECT_FALSE(fs::exists(folder_ / "out"));
  file_["seeds"] = Json::array();
  EXPECT_NE(error_of({}).find("\"seeds\" is []; expected a list"), std::string::npos);
  file_.erase("seeds");
  EXPECT_NE(error_of({}).find("\"seeds\" is missing"), std::string::npos);
}

// The declared ones name only arms and metrics that they have.
TEST_F(ExperimentReport, TheBundledExperimentsAreRead) {
  for (const char* name : {"e1_parity", "e2_decoupling", "e3_cost"}) {
    const fs::path path =
        fs::path(FATHOM_ROOT) / "recipes/experiments" / (std::string(name) + ".json");
    const Json file = base::read_json_file(path);
    const fs::path run = folder_ / name / "seed-1" / file["arms"][0].get<std::string>();
    fs::create_directories(run);
    base::write_file_atomically(run / "metrics.jsonl", "{\"step\": 1, \"tokens\": 1}\n");
    const Json result = report_experiment({path, folder_ / name, folder_ / "out"});
    std::vector<std::string> metrics;
    for (const Json& metric : file["metrics"]) metrics.push_back(metric["name"]);
    ASSERT_FALSE(result["pass"].empty());
    for (const Json& criterion : result["pass"]) {
      EXPECT_EQ(criterion["verdict"], "not run");
      for (const char* key : {"metric", "other_metric"})
        if (criterion.contains(key)) {
          EXPECT_NE(std::find(metrics.begin(), metrics.end(), criterion[key]), metrics.end());
        }
    }
  }
}

}  // namespace
}  // namespace fathom::bench
