// What a token costs against its position: the report's cost figure (V3.2 report, figure 3) on this
// machine.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "base/json.h"

namespace fathom::bench {

struct CostOptions {
  std::filesystem::path model;  // empty: one layer of V3.2's shape with 32 random experts
  std::vector<int64_t> positions = {0, 512, 1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384};
  int64_t chunk = 64;   // tokens of a prefill at once
  int num_threads = 0;  // with one, processor time counts
  int repeats = 5;
  bool has_prefill = true;
  std::filesystem::path svg;  // where to draw; empty: nowhere
};

// Also what the cache takes at the last position, as computed and as the process grew (the cache,
// and scratch of the passes). For each position milliseconds a token, the best of several runs, FP8
// cache: decode and prefill, dense and with DSA; prefill with DSA in both forms, gathered (MQA) and
// as a mask (MHA, up to 16,384 keys). Marked: index_topk, and the positions from which DSA is
// cheaper than dense attention and gathering is cheaper than masking, interpolated (absent where
// the lines do not cross). The last also as model/attention_cost computes it from the rates of the
// parts, measured here, for chunks and for whole sequences.
Json measure_cost(const CostOptions& options);

}  // namespace fathom::bench
