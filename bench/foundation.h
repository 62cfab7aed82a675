// The figures of the foundation, measured on a model folder: forward, decode, load, tokenizer,
// training.
#pragma once

#include <filesystem>
#include <string>

#include "base/json.h"

namespace fathom::bench {

struct FoundationOptions {
  std::filesystem::path model;
  int num_threads = 0;  // 0: one a core
  int64_t forward_tokens = 4096;
  int64_t decode_tokens = 256;
  int64_t training_tokens = 4096;  // of one step
};

// Each figure is the median of three runs after one to warm up; names carry their units.
Json measure_foundation(const FoundationOptions& options);

}  // namespace fathom::bench
