// The HTTP server: OpenAI's and DeepSeek's completions APIs over one model, and a page to try them.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "kernels/paged_rows.h"

namespace fathom::server {

struct ServerOptions {
  std::filesystem::path model = "models/nano";
  std::string host = "127.0.0.1";
  int port = 8080;  // 0: any free one
  int max_running_requests = 64;
  int max_waiting_requests = 256;  // others are told to try again later (429)
  kernels::RowFormat cache_format = kernels::RowFormat::kBF16;  // of the KV cache
  int64_t cache_mib = 1024;                                     // all KV caches together
  bool speculate = false;                                       // draft tokens with the MTP layer
  bool is_strict_reasoning = false;
  bool verify = false;  // read and check every weight first
  int num_threads = 0;  // 0: one a core
};

// Serves until SIGINT or SIGTERM, then ends all answers with what they have and returns, within ten
// seconds: requests that have no token yet get an error, connections that stay busy are left.
// Prints "listening on http://HOST:PORT" once it does. Throws Error if the model cannot be loaded
// or the port is taken. A request can fail in any way; the server stays up.
void serve(const ServerOptions& options);

}  // namespace fathom::server
