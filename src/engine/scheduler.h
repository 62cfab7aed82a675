// Which tokens the next forward pass takes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/random.h"
#include "engine/draft_policy.h"
#include "engine/request.h"
#include "model/kv_cache.h"

namespace fathom::engine {

// One request in flight.
struct Sequence {
  uint64_t id;
  Request request;
  EventCallback on_event;
  model::KvCache cache;
  base::Random random;
  std::vector<int32_t> tokens = {};   // the prompt and what was generated
  int64_t num_pages = 0;              // that it may need to its end
  int64_t num_cached_tokens = 0;      // of the prompt, found in the prefix cache
  bool has_failed = false;            // what it computed is not to be kept
  int64_t num_scheduled = 0;          // tokens of this step's forward pass, the draft included
  bool drafts = false;                // its MTP cache is kept up, for drafts
  std::optional<int32_t> draft = {};  // the token after the next, if MTP is right
  DraftRate draft_rate = DraftRate();
  std::vector<int32_t> routed_experts = {};  // for the next token's record

  std::span<const int32_t> generated() const {
    return std::span(tokens).subspan(request.prompt.size());
  }
  bool is_prefilling() const {
    return cache.num_tokens() < static_cast<int64_t>(request.prompt.size());
  }
};

// Sets num_scheduled of every running sequence and returns those that have some: at most
// max_batch_tokens tokens, or one for each that decodes. These come first, then drafts where a
// sequence has room for one; prompts share what is left, oldest first.
std::vector<Sequence*> schedule(const std::vector<std::unique_ptr<Sequence>>& running,
                                int64_t max_batch_tokens, int64_t context_length);

}  // namespace fathom::engine
