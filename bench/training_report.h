// What training runs did, as one HTML file with its charts inside.
#pragma once

#include <filesystem>
#include <vector>

namespace fathom::bench {

struct TrainingReportOptions {
  std::vector<std::filesystem::path> runs;  // folders that pretrain wrote; at most eight
  std::filesystem::path out = "report.html";
};

// A table of the runs (stage, steps, tokens, hours, last validation) and, against each run's
// tokens, every curve that any of them has: losses, validation, the indexers' loss and recall,
// expert balance, gradient norms, learning rate, time of a step. Long runs are averaged to 200
// points. Runs may be under way, or killed. An Error names a folder without metrics.jsonl, or the
// line of it that cannot be read.
void write_training_report(const TrainingReportOptions& options);

}  // namespace fathom::bench
