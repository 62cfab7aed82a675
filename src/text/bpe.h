// Byte-pair encoding of one piece of text: start from single bytes, then merge the pair of the
// lowest rank (the leftmost of equals) until no pair has one.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/piece_cache.h"

namespace fathom::text {

using TokenId = int32_t;

struct BpeMerge {
  TokenId left;
  TokenId right;
  TokenId merged;
};

class Bpe {
 public:
  // tokens[id]: the token's bytes, empty where the vocabulary has a hole or a token that BPE does
  // not make. byte_ids[b]: the token of the single byte b. Merges come by rank.
  Bpe(std::vector<std::string> tokens, const std::array<TokenId, 256>& byte_ids,
      const std::vector<BpeMerge>& merges);

  // Appends the ids of `piece`. Thread-safe. O(n log n) in the piece's length.
  void encode(std::string_view piece, std::vector<TokenId>* ids) const;

  std::optional<TokenId> find(std::string_view bytes) const;
  const std::vector<std::string>& tokens() const { return tokens_; }

 private:
  struct PairSlot {
    uint64_t pair = kNoPair;
    int32_t rank = 0;
    TokenId merged = 0;
  };
  // Up to eight bytes of a token are compared without a look at the token itself. A token is closed
  // if merging its own bytes gives it back: a piece that equals one needs no merging. Nearly every
  // piece of prose does.
  struct TokenSlot {
    uint64_t prefix = 0;
    uint32_t size : 31 = 0;  // 0: empty
    uint32_t is_closed : 1 = 0;
    TokenId id = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  void insert_pairs(const std::vector<BpeMerge>& merges);
  void insert_tokens();
  const TokenSlot* find_slot(std::string_view bytes, uint64_t hash) const;
  const PairSlot* find_pair(TokenId left, TokenId right) const;
  void merge(std::string_view piece, std::vector<TokenId>* ids) const;
  void merge_short(std::string_view piece, std::vector<TokenId>* ids) const;
  void merge_long(std::string_view piece, std::vector<TokenId>* ids) const;

  std::vector<std::string> tokens_;
  std::array<TokenId, 256> byte_ids_{};
  // Open addressing, a power of two in size, at most half full.
  std::vector<PairSlot> pairs_;
  std::vector<TokenSlot> slots_;
  std::unique_ptr<PieceCache> cache_ = std::make_unique<PieceCache>();
};

}  // namespace fathom::text
