#include "text/piece_cache.h"

namespace fathom::text {

PieceCache::PieceCache()
    : slots_(std::make_unique<std::array<std::atomic<const Entry*>, kNumSlots>>()) {}

PieceCache::~PieceCache() {
  for (const auto& slot : *slots_) delete slot.load(std::memory_order_relaxed);
}

bool PieceCache::find(std::string_view piece, uint64_t hash, std::vector<int32_t>* ids) const {
  for (size_t i = 0; i < kNumProbes; ++i) {
    const Entry* entry = (*slots_)[(hash + i) % kNumSlots].load(std::memory_order_acquire);
    if (entry == nullptr) return false;
    if (entry->piece == piece) {
      ids->insert(ids->end(), entry->ids.begin(), entry->ids.end());
      return true;
    }
  }
  return false;
}

void PieceCache::insert(std::string_view piece, uint64_t hash, std::span<const int32_t> ids) {
  for (size_t i = 0; i < kNumProbes; ++i) {
    std::atomic<const Entry*>& slot = (*slots_)[(hash + i) % kNumSlots];
    if (slot.load(std::memory_order_relaxed) != nullptr) continue;
    auto entry = std::make_unique<const Entry>(
        Entry{std::string(piece), std::vector<int32_t>(ids.begin(), ids.end())});
    const Entry* expected = nullptr;
    if (slot.compare_exchange_strong(expected, entry.get(), std::memory_order_release,
                                     std::memory_order_relaxed)) {
      entry.release();
      return;
    }
  }
}

}  // namespace fathom::text
