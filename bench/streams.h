// The engine's decode rate for one stream and for many, without HTTP.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "base/json.h"
#include "engine/engine.h"

namespace fathom::bench {

struct StreamsOptions {
  std::filesystem::path model;
  std::vector<int> streams = {1, 8, 64};
  int64_t prompt_tokens = 32;
  std::filesystem::path text = {};  // a file whose parts are the prompts; empty: random tokens
  double temperature = 1;
  int64_t tokens = 256;  // that each stream generates
  int num_threads = 0;
  int repeats = 3;
  engine::EngineOptions engine = {};
};

// For each number of streams: tokens a second of all together from the first token on (prompts are
// not in it), the median of the runs, and how many times one stream's that is. Prompts differ, no
// token ends a stream. Where engine.speculation is set: the same without it as well, run by turns,
// and the share of the drafts that were right.
Json measure_streams(const StreamsOptions& options);

}  // namespace fathom::bench
