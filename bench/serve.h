// A load generator for a server on this machine: how long until the first token, how fast after it.
#pragma once

#include <cstdint>
#include <string>

#include "base/json.h"

namespace fathom::bench {

struct ServeOptions {
  std::string url = "http://127.0.0.1:8080";  // loopback addresses only
  int num_requests = 256;
  int concurrency = 64;            // requests under way at most
  double requests_per_second = 0;  // arrivals at random times (Poisson); 0: as soon as one ends
  int prompt_tokens = 128, max_tokens = 64;
  double timeout_s = 120;  // of one request
  uint64_t seed = 1;
};

// Streams num_requests completions of random prompts. Milliseconds as percentiles: `ttft_ms` from
// when a request was due to its first piece of text, waiting for a free connection included;
// `between_ms` from piece to piece; `request_ms`. Tokens a second over all. Failures are counted by
// their cause, as the server says it, and take no part in the times. Throws Error if the address is
// not loopback or nothing answers there.
Json measure_serve(const ServeOptions& options);

}  // namespace fathom::bench
