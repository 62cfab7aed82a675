// What BPE made of pieces seen before. Bounded, shared by threads without locks: a slot is filled
// once and never changed, so the frequent pieces of a text, which come early, stay. Only speed
// depends on what it holds.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fathom::text {

class PieceCache {
 public:
  PieceCache();
  ~PieceCache();
  PieceCache(const PieceCache&) = delete;
  PieceCache& operator=(const PieceCache&) = delete;

  // Appends the ids of `piece` and returns true, or returns false. `hash` is the piece's.
  bool find(std::string_view piece, uint64_t hash, std::vector<int32_t>* ids) const;
  // Does nothing if the piece's slots are taken.
  void insert(std::string_view piece, uint64_t hash, std::span<const int32_t> ids);

 private:
  struct Entry {
    std::string piece;
    std::vector<int32_t> ids;
  };
  static constexpr size_t kNumSlots = 1 << 17;
  static constexpr size_t kNumProbes = 4;

  std::unique_ptr<std::array<std::atomic<const Entry*>, kNumSlots>> slots_;
};

}  // namespace fathom::text
