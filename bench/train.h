// What a training step costs against the length of its sequence, dense and sparse.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"

namespace fathom::bench {

struct TrainOptions {
  std::filesystem::path model;
  // Tokens as pretrain cuts them, read across documents; empty: random tokens, whose selections
  // have less in common than those of text.
  std::filesystem::path tokens;
  std::vector<int64_t> lengths = {1024, 2048, 4096, 8192, 16384};
  std::vector<std::string> stages = {"dense", "warmup", "sparse"};
  int64_t index_topk = 0;  // 0: the model's
  int num_threads = 0;
  int repeats = 3;
  std::filesystem::path svg;  // where to draw; empty: nowhere
  // Folder whose STAGE/metrics.jsonl get a line a length, as `fathom experiment` reads them:
  // tokens, step_seconds, peak_megabytes, and step_seconds_N and bytes_a_token_N for N tokens.
  // Empty: none.
  std::filesystem::path runs;
};

// For each length one sequence, forward and backward, without the optimizer: in
// the dense stage, the indexer's warm-up and the sparse stage (LM, MTP and indexer losses).
// Seconds are the best of the repeats, of which the first is slower than the others; bytes are how
// far the process' resident memory rose above what it held before the step.
Json measure_training(const TrainOptions& options);

}  // namespace fathom::bench
