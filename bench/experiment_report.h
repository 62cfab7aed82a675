// What came of an experiment: a file under recipes/experiments/ declares its arms and, before they
// run, what counts as passed; this reads the runs and judges them.
#pragma once

#include <filesystem>

#include "base/json.h"

namespace fathom::bench {

// The file: {"title", "seeds": [1, 2, 3], "arms": ["dense", ...], "metrics": [{"name", "key",
// "take": "last" | "max" | "mean", "curve": true}, ...], "pass": [{"what", "metric", "of": arm,
// "over" | "minus": arm, "other_metric": of that arm, else the same, "at_most" | "at_least":
// bound},
// ...]}. An arm's runs are RUNS/seed-N/ARM, folders of pretrain --run. A metric's key is one of
// metrics.jsonl; of a list the mean counts, and the list stands beside it.
struct ExperimentReportOptions {
  std::filesystem::path experiment;
  std::filesystem::path runs;
  std::filesystem::path out;  // folder for NAME.json, NAME.md, NAME.svg, NAME the experiment's
};

// Means and standard deviations over the seeds that have run, and the verdicts: "passed", "failed",
// or "not run" where an arm is missing. Writes the three files and returns the JSON.
Json report_experiment(const ExperimentReportOptions& options);

}  // namespace fathom::bench
