#include "text/bpe.h"

#include <bit>
#include <cstring>
#include <limits>
#include <queue>

#include "base/check.h"

namespace fathom::text {

namespace {

constexpr int kMaxShortPiece = 64;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

uint64_t mix(uint64_t value) {
  value *= 0x9E3779B97F4A7C15u;
  return value ^ value >> 32;
}

uint64_t hash_bytes(std::string_view bytes) {
  uint64_t hash = bytes.size();
  while (bytes.size() >= 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data(), 8);
    hash = mix(hash ^ word);
    bytes.remove_prefix(8);
  }
  uint64_t word = 0;
  for (const char c : bytes) word = word << 8 | static_cast<uint8_t>(c);
  return mix(hash ^ word);
}

uint64_t pair_key(TokenId left, TokenId right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(std::vector<std::string> tokens, const std::array<TokenId, 256>& byte_ids,
         const std::vector<BpeMerge>& merges)
    : tokens_(std::move(tokens)), byte_ids_(byte_ids) {
  insert_pairs(merges);
  insert_tokens();
}

void Bpe::insert_pairs(const std::vector<BpeMerge>& merges) {
  pairs_.resize(std::bit_ceil(2 * merges.size() + 2));
  const size_t mask = pairs_.size() - 1;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const BpeMerge& merge = merges[rank];
    const uint64_t key = pair_key(merge.left, merge.right);
    size_t slot = mix(key) & mask;
    while (pairs_[slot].pair != kNoPair && pairs_[slot].pair != key) slot = (slot + 1) & mask;
    if (pairs_[slot].pair == key) continue;  // the first of two equal merges has the lower rank
    pairs_[slot] = {key, static_cast<int32_t>(rank), merge.merged};
  }
}

void Bpe::insert_tokens() {
  slots_.resize(std::bit_ceil(2 * tokens_.size() + 2));
  is_closed_.resize(tokens_.size());
  const size_t mask = slots_.size() - 1;
  std::vector<TokenId> ids;
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (tokens_[id].empty()) continue;
    const uint64_t hash = hash_bytes(tokens_[id]);
    size_t slot = hash & mask;
    while (slots_[slot].id >= 0) slot = (slot + 1) & mask;
    slots_[slot] = {hash, static_cast<TokenId>(id)};
    ids.clear();
    merge(tokens_[id], &ids);
    is_closed_[id] = ids.size() == 1 && ids[0] == static_cast<TokenId>(id);
  }
}

std::optional<TokenId> Bpe::find(std::string_view bytes) const {
  const size_t mask = slots_.size() - 1;
  const uint64_t hash = hash_bytes(bytes);
  for (size_t slot = hash & mask; slots_[slot].id >= 0; slot = (slot + 1) & mask) {
    if (slots_[slot].hash == hash && tokens_[slots_[slot].id] == bytes) return slots_[slot].id;
  }
  return std::nullopt;
}

const Bpe::PairSlot* Bpe::find_pair(TokenId left, TokenId right) const {
  const size_t mask = pairs_.size() - 1;
  const uint64_t key = pair_key(left, right);
  size_t slot = mix(key) & mask;
  while (pairs_[slot].pair != key) {
    if (pairs_[slot].pair == kNoPair) return nullptr;
    slot = (slot + 1) & mask;
  }
  return &pairs_[slot];
}

void Bpe::encode(std::string_view piece, std::vector<TokenId>* ids) const {
  if (const auto id = find(piece); id && is_closed_[*id]) {
    ids->push_back(*id);
  } else {
    merge(piece, ids);
  }
}

void Bpe::merge(std::string_view piece, std::vector<TokenId>* ids) const {
  piece.size() <= kMaxShortPiece ? merge_short(piece, ids) : merge_long(piece, ids);
}

void Bpe::merge_short(std::string_view piece, std::vector<TokenId>* ids) const {
  TokenId parts[kMaxShortPiece + 1];
  int32_t ranks[kMaxShortPiece + 1];   // of parts i and i+1
  TokenId merged[kMaxShortPiece + 1];  // what they would become
  int count = static_cast<int>(piece.size());
  for (int i = 0; i < count; ++i) parts[i] = byte_ids_[static_cast<uint8_t>(piece[i])];
  const auto look_up = [&](int i) {
    const PairSlot* pair = i + 1 < count ? find_pair(parts[i], parts[i + 1]) : nullptr;
    ranks[i] = pair == nullptr ? kNoRank : pair->rank;
    merged[i] = pair == nullptr ? 0 : pair->merged;
  };
  for (int i = 0; i < count; ++i) look_up(i);
  while (true) {
    int best = 0;
    for (int i = 1; i + 1 < count; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (count < 2 || ranks[best] == kNoRank) break;
    parts[best] = merged[best];
    const int num_moved = count - best - 2;
    std::memmove(parts + best + 1, parts + best + 2, num_moved * sizeof parts[0]);
    std::memmove(ranks + best + 1, ranks + best + 2, num_moved * sizeof ranks[0]);
    std::memmove(merged + best + 1, merged + best + 2, num_moved * sizeof merged[0]);
    --count;
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
  ids->insert(ids->end(), parts, parts + count);
}

// The same merges through a linked list and a heap: pieces may be as long as the whole text.
void Bpe::merge_long(std::string_view piece, std::vector<TokenId>* ids) const {
  struct Part {
    TokenId id;  // -1 once merged into the part before
    int32_t previous, next;
  };
  struct Candidate {
    int32_t rank, position;
    TokenId left, right, merged;  // stale unless the parts still are left and right
    bool operator<(const Candidate& other) const {  // the heap gives its largest first
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  CHECK_LT(piece.size(), size_t{std::numeric_limits<int32_t>::max()});
  const auto size = static_cast<int32_t>(piece.size());
  std::vector<Part> parts(size);
  for (int32_t i = 0; i < size; ++i) {
    parts[i] = {byte_ids_[static_cast<uint8_t>(piece[i])], i - 1, i + 1};
  }
  std::priority_queue<Candidate> heap;
  const auto look_up = [&](int32_t i) {
    if (i < 0 || parts[i].next == size) return;
    const TokenId left = parts[i].id, right = parts[parts[i].next].id;
    const PairSlot* pair = find_pair(left, right);
    if (pair != nullptr) heap.push({pair->rank, i, left, right, pair->merged});
  };
  for (int32_t i = 0; i < size; ++i) look_up(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    Part& left = parts[best.position];
    if (left.id != best.left || left.next == size || parts[left.next].id != best.right) continue;
    Part& right = parts[left.next];
    left.id = best.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next != size) parts[left.next].previous = best.position;
    look_up(best.position);
    look_up(left.previous);
  }
  for (int32_t i = 0; i < size; i = parts[i].next) ids->push_back(parts[i].id);
}

}  // namespace fathom::text
