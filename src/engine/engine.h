// The generation engine: continuous batching over a ragged forward pass. It knows token ids only,
// nothing of text; stop strings and parsing are the caller's.
//
// One background thread owns the model, the caches and the schedule. Each step takes every running
// request's next token plus prompt chunks of waiting ones through one forward pass, then samples. A
// request's tokens and log-probabilities do not depend on what else is in the batch, nor on what of
// its prompt was found in the cache.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/check.h"
#include "engine/request.h"
#include "model/kv_cache.h"
#include "model/model.h"

namespace fathom::engine {

// kServed: operands of matmuls in bf16 and, where the weights are FP8, the deploy mode of the
// published reference (model::serving_options). kPlain: f32, no activation quantised.
enum class Numerics { kServed, kPlain };

// Whether the MTP layer drafts a token ahead, which the next forward pass checks. The answers are
// the same, to the bit. kWherePays: a request drafts until its drafts turn out to cost more time
// than they save (draft_policy.h); where they would from the beginning, one request in eight tries.
enum class Speculation { kNone, kWherePays, kAlways };

struct EngineOptions {
  Numerics numerics = Numerics::kServed;
  int max_batch_tokens = 512;      // tokens of one forward pass: decode tokens first, then prompts
  int max_running_requests = 64;   // others wait their turn
  int max_waiting_requests = 256;  // beyond these and those that run submit() refuses
  model::CacheFormat cache_format = model::CacheFormat::kBF16;
  // All caches together: those of running requests, each with room to its end, and prefixes kept
  // for later ones, which make way. A request that finds no room waits.
  int64_t cache_bytes = int64_t{1} << 30;
  bool keep_prefixes = true;
  Speculation speculation = Speculation::kNone;
};

class QueueFull : public Error {
 public:
  using Error::Error;
};

class Stopped : public Error {
 public:
  using Error::Error;
};

class Engine {
 public:
  Engine(std::shared_ptr<const model::Model> model, EngineOptions options = {});
  ~Engine();  // stops and joins the thread
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  using RequestId = uint64_t;
  // Throws Error if the prompt is empty, holds an id outside the vocabulary, leaves no room in the
  // context (max_position_embeddings) or more than all caches can hold, or an option is out of
  // range; QueueFull if too many wait; Stopped after stop().
  RequestId submit(Request request, EventCallback on_event);
  // The request's last event follows soon. Unknown or ended ids are ignored. From any thread.
  void cancel(RequestId id);
  // Cancels every request, those that wait too, after the forward pass that runs. From any thread.
  void stop();

  // Tokens of prompt and answer: the model's context, or all caches where they hold less.
  int64_t context_length() const;

  struct Statistics {
    int64_t num_running = 0, num_waiting = 0;
    int64_t num_prompt_tokens = 0, num_generated_tokens = 0;  // since the start, computed
    int64_t num_cached_tokens = 0;                            // of prompts, found in the cache
    int64_t num_drafted_tokens = 0, num_accepted_tokens = 0;  // by MTP
    int64_t cache_pages_running = 0, cache_pages_kept = 0, cache_pages_total = 0;
  };
  Statistics statistics() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fathom::engine
