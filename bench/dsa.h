// The sparse-attention kernels at one layer's true shape: time against context, held against the
// machine's peaks of the same run.
#pragma once

#include <cstdint>
#include <vector>

#include "base/json.h"
#include "kernels/paged_rows.h"

namespace fathom::bench {

struct DsaOptions {
  std::vector<int64_t> contexts = {4096, 16384, 65536, 131072};
  int num_threads = 1;
  int64_t prefill_tokens = 64;
  int64_t index_heads = 64, index_dim = 128, top_k = 2048;
  int64_t heads = 128, latent_dim = 512, rope_dim = 64;
  kernels::RowFormat cache = kernels::RowFormat::kFP8;
};

// Random keys and latents; index heads of e4m3 values, as in deploy mode. Per context: `decode`
// (one query at the end) and `prefill` (the last prefill_tokens queries), each with milliseconds a
// token: indexer_ms (scores alone), topk_ms (what selecting adds), attention_ms (over the
// selected), dense_attention_ms; their share of the peak of the instructions that are used
// (`arithmetic`); topk_overlap with scores summed in double. Best of several runs each;
// one thread's in processor time.
Json measure_dsa(const DsaOptions& options);

}  // namespace fathom::bench
