// Context-free grammars over bytes, and a recogniser that follows one byte by byte: what
// constrained decoding asks which tokens may come next.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/check.h"

namespace fathom::text {

class Grammar {
 public:
  using Rule = int32_t;
  using Bytes = std::bitset<256>;
  // One byte of a set, or whatever a rule derives.
  struct Symbol {
    Rule rule = -1;
    Bytes bytes = {};
  };
  using Sequence = std::vector<Symbol>;

  struct TooLarge : Error {
    using Error::Error;
  };
  // Both throw TooLarge where the grammar grows beyond 2^18 rules or 2^20 symbols: it may come from
  // a request.
  Rule add_rule();
  void add_alternative(Rule rule, Sequence sequence);
  // Where derivation begins: the first rule that was added.
  static constexpr Rule kStart = 0;
  // Bound of what requests ask to be repeated.
  static constexpr int64_t kMostRepeats = 4096;

  // What was added since is taken back, and must not be referred to.
  struct Mark {
    size_t num_rules, num_sequences, num_symbols;
  };
  Mark mark() const { return {rules_.size(), sequences_.size(), num_symbols_}; }
  void return_to(const Mark& mark);
  // What may be left out should leave room for what may not.
  bool is_half_full() const;

  // Drops the alternatives that no text ends, so that whatever is begun can be finished. Throws
  // Error if nothing is left to derive, or if a rule can begin with itself: following it would not
  // end. Call once all rules stand.
  void finish();

  const std::vector<int32_t>& alternatives(Rule rule) const { return rules_[rule]; }
  const Sequence& sequence(int32_t alternative) const { return sequences_[alternative]; }

 private:
  void drop_endless();
  void check_beginnings() const;

  std::vector<std::vector<int32_t>> rules_;  // alternatives
  std::vector<Sequence> sequences_;          // of alternatives
  size_t num_symbols_ = 0;
};

// Pieces that grammars are made of.
Grammar::Symbol byte_in(std::string_view bytes);
Grammar::Symbol byte_between(uint8_t first, uint8_t last);
Grammar::Sequence literal(std::string_view text);
void append(Grammar::Sequence& sequence, const Grammar::Sequence& more);
// At least `fewest` and at most `most` (-1: any number) of `item`, each after the first behind
// `separator`.
Grammar::Rule repeated(Grammar& grammar, const Grammar::Sequence& item, int64_t fewest,
                       int64_t most, const Grammar::Sequence& separator = {});
// Any bytes, also none, in which `marker` does not occur.
Grammar::Rule bytes_without(Grammar& grammar, std::string_view marker);

// Follows all derivations at once. States are numbered as they are met and their transitions kept,
// so that asking about every token of a vocabulary costs a table look-up a byte. Not for several
// threads at once.
class GrammarMatcher {
 public:
  using State = int32_t;
  static constexpr State kDead = -1;

  explicit GrammarMatcher(std::shared_ptr<const Grammar> grammar);

  // Following is bounded: a grammar may leave more readings open than there is time for. next()
  // throws Error after this much work since the last call of this.
  void begin_token() { num_expansions_ = 0; }

  State start() const { return start_; }
  // kDead if no derivation goes on with `byte`.
  State next(State state, uint8_t byte) {
    const State known = transitions_[state][byte];
    return known != kUnknown ? known : find_next(state, byte);
  }
  // Whether what was read is a whole derivation.
  bool may_end(State state) const { return states_[state].may_end; }

  // Of all states, their open readings and what these share: 8 to 80 bytes each.
  int64_t num_kept() const { return std::ssize(states_) + num_tops_ + std::ssize(frames_); }
  int64_t num_states() const { return std::ssize(states_); }
  // Forgets every state but this one; returns its new number.
  State forget_others(State state);

 private:
  static constexpr State kUnknown = -2;
  static constexpr int32_t kBottom = -1;  // below a stack's lowest frame

  // A stack is its top frame: where in a sequence its derivation stands, and the frame that goes on
  // when the sequence ends. Equal frames have one number.
  struct Frame {
    int32_t alternative, position, below;
    bool operator==(const Frame&) const = default;
  };
  struct FrameHash {
    size_t operator()(const Frame& frame) const;
  };
  struct Stacks {
    std::vector<int32_t> tops;  // ascending; each stands before a byte
    bool may_end = false;
  };

  int32_t frame_number(const Frame& frame);
  using Seen = std::unordered_set<Frame, FrameHash>;
  void expand(const Frame& frame, Seen& seen, Stacks& stacks);
  State state_number(Stacks stacks);
  State find_next(State state, uint8_t byte);
  int32_t copy_frame(const GrammarMatcher& from, int32_t number);

  std::shared_ptr<const Grammar> grammar_;
  std::vector<Frame> frames_;
  std::unordered_map<Frame, int32_t, FrameHash> frame_numbers_;
  std::vector<Stacks> states_;
  std::unordered_map<uint64_t, std::vector<State>> states_by_hash_;
  std::vector<std::array<State, 256>> transitions_;
  int64_t num_expansions_ = 0, num_tops_ = 0;
  State start_ = kDead;
};

}  // namespace fathom::text
