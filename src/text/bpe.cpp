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

uint64_t load_eight(const char* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, 8);
  return word;
}

uint32_t load_four(const char* bytes) {
  uint32_t word;
  std::memcpy(&word, bytes, 4);
  return word;
}

// The first eight bytes; of less, a number that together with the size stands for all of them.
uint64_t prefix_of(std::string_view bytes) {
  const char* data = bytes.data();
  const size_t size = bytes.size();
  if (size >= 8) return load_eight(data);
  if (size >= 4) return load_four(data) | uint64_t{load_four(data + size - 4)} << 32;
  if (size == 0) return 0;
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(data[i])); };
  return byte(0) | byte(size / 2) << 8 | byte(size - 1) << 16;
}

uint64_t hash_bytes(std::string_view bytes) {
  uint64_t hash = mix(prefix_of(bytes) + bytes.size() * 0xD6E8FEB86659FD93u);
  if (bytes.size() <= 8) return hash;
  for (size_t i = 8; i + 8 < bytes.size(); i += 8) hash = mix(hash ^ load_eight(&bytes[i]));
  return mix(hash ^ load_eight(bytes.data() + bytes.size() - 8));
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
  const size_t mask = slots_.size() - 1;
  std::vector<TokenId> ids;
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (tokens_[id].empty()) continue;
    size_t slot = hash_bytes(tokens_[id]) & mask;
    while (slots_[slot].size != 0) slot = (slot + 1) & mask;
    ids.clear();
    merge(tokens_[id], &ids);
    const bool is_closed = ids.size() == 1 && ids[0] == static_cast<TokenId>(id);
    slots_[slot] = {prefix_of(tokens_[id]), static_cast<uint32_t>(tokens_[id].size()), is_closed,
                    static_cast<TokenId>(id)};
  }
}

const Bpe::TokenSlot* Bpe::find_slot(std::string_view bytes, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  const uint64_t prefix = prefix_of(bytes);
  for (size_t i = hash & mask; slots_[i].size != 0; i = (i + 1) & mask) {
    const TokenSlot& slot = slots_[i];
    if (slot.prefix == prefix && slot.size == bytes.size() &&
        (bytes.size() <= 8 || tokens_[slot.id] == bytes)) {
      return &slot;
    }
  }
  return nullptr;
}

std::optional<TokenId> Bpe::find(std::string_view bytes) const {
  const TokenSlot* slot = find_slot(bytes, hash_bytes(bytes));
  return slot == nullptr ? std::nullopt : std::optional(slot->id);
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
  const uint64_t hash = hash_bytes(piece);
  const TokenSlot* slot = find_slot(piece, hash);
  if (slot != nullptr && slot->is_closed) {
    ids->push_back(slot->id);
  } else if (piece.size() > kMaxShortPiece) {
    merge_long(piece, ids);
  } else if (!cache_->find(piece, hash, ids)) {
    const size_t begin = ids->size();
    merge_short(piece, ids);
    cache_->insert(piece, hash, std::span(*ids).subspan(begin));
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
