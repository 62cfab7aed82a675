#include "engine/scheduler.h"

#include <algorithm>

namespace fathom::engine {

std::vector<Sequence*> schedule(const std::vector<std::unique_ptr<Sequence>>& running,
                                int64_t max_batch_tokens, int64_t context_length) {
  int64_t budget = max_batch_tokens;
  for (auto& sequence : running) {
    sequence->num_scheduled = sequence->is_prefilling() ? 0 : 1;
    budget -= sequence->num_scheduled;
  }
  for (auto& sequence : running) {
    if (!sequence->draft || budget <= 0) continue;
    const int64_t length = std::ssize(sequence->tokens) + 1;
    if (length > std::min(sequence->num_pages * kernels::kPageRows, context_length)) continue;
    ++sequence->num_scheduled;
    --budget;
  }
  for (auto& sequence : running) {
    if (!sequence->is_prefilling()) continue;
    const int64_t left = std::ssize(sequence->request.prompt) - sequence->cache.num_tokens();
    sequence->num_scheduled = std::max<int64_t>(0, std::min(left, budget));
    budget -= sequence->num_scheduled;
  }
  std::vector<Sequence*> sequences;
  for (auto& sequence : running)
    if (sequence->num_scheduled > 0) sequences.push_back(sequence.get());
  return sequences;
}

}  // namespace fathom::engine
