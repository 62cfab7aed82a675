#include "text/grammar.h"

#include <algorithm>
#include <string>

#include "base/check.h"

namespace fathom::text {
namespace {

using Symbol = Grammar::Symbol;
using Sequence = Grammar::Sequence;

constexpr size_t kMostRules = 1 << 18;
constexpr size_t kMostSymbols = 1 << 20;
constexpr int64_t kMostExpansions = 1 << 20;  // for one token: a third of a second

[[noreturn]] void fail_too_large() {
  throw Grammar::TooLarge(
      "the answer's grammar is too large; ask for fewer parts, shorter lists of values, lower "
      "bounds");
}

// Rules with an alternative that holds nothing but such rules and, if `with_bytes`, sets of bytes:
// those that derive some text, or the empty one.
std::vector<bool> deriving_rules(const Grammar& grammar, Grammar::Rule num_rules, bool with_bytes) {
  struct Use {
    Grammar::Rule rule;
    size_t alternative;  // of all, in order
  };
  std::vector<int64_t> num_missing;  // symbols of each alternative that are not known to be such
  std::vector<std::vector<Use>> uses(num_rules);
  std::vector<bool> is_deriving(num_rules, false);
  std::vector<Grammar::Rule> found;
  const auto add = [&](Grammar::Rule rule) {
    if (!is_deriving[rule]) found.push_back(rule);
    is_deriving[rule] = true;
  };
  for (Grammar::Rule rule = 0; rule < num_rules; ++rule)
    for (const int32_t alternative : grammar.alternatives(rule)) {
      int64_t missing = 0;
      for (const Symbol& symbol : grammar.sequence(alternative)) {
        missing += symbol.rule >= 0 || !with_bytes || symbol.bytes.none();
        if (symbol.rule >= 0) uses[symbol.rule].push_back({rule, num_missing.size()});
      }
      num_missing.push_back(missing);
      if (missing == 0) add(rule);
    }
  while (!found.empty()) {
    const Grammar::Rule rule = found.back();
    found.pop_back();
    for (const Use& use : uses[rule])
      if (--num_missing[use.alternative] == 0) add(use.rule);
  }
  return is_deriving;
}

// Rules that some derivation of `rule` can begin with.
std::vector<Grammar::Rule> leading_rules(const Grammar& grammar, Grammar::Rule rule,
                                         const std::vector<bool>& nullable) {
  std::vector<Grammar::Rule> leading;
  for (const int32_t alternative : grammar.alternatives(rule)) {
    for (const Symbol& symbol : grammar.sequence(alternative)) {
      if (symbol.rule < 0) break;
      leading.push_back(symbol.rule);
      if (!nullable[symbol.rule]) break;
    }
  }
  return leading;
}

}  // namespace

Grammar::Rule Grammar::add_rule() {
  if (rules_.size() >= kMostRules) fail_too_large();
  rules_.emplace_back();
  return static_cast<Rule>(rules_.size()) - 1;
}

void Grammar::add_alternative(Rule rule, Sequence sequence) {
  num_symbols_ += sequence.size() + 1;
  if (num_symbols_ > kMostSymbols) fail_too_large();
  rules_.at(rule).push_back(static_cast<int32_t>(sequences_.size()));
  sequences_.push_back(std::move(sequence));
}

void Grammar::return_to(const Mark& mark) {
  rules_.resize(mark.num_rules);
  sequences_.resize(mark.num_sequences);
  num_symbols_ = mark.num_symbols;
}

bool Grammar::is_half_full() const {
  return rules_.size() > kMostRules / 2 || num_symbols_ > kMostSymbols / 2;
}

void Grammar::finish() {
  drop_endless();
  check_beginnings();
}

void Grammar::drop_endless() {
  const auto is_deriving =
      deriving_rules(*this, static_cast<Rule>(rules_.size()), /*with_bytes=*/true);
  for (auto& alternatives : rules_)
    std::erase_if(alternatives, [&](int32_t alternative) {
      return std::any_of(sequences_[alternative].begin(), sequences_[alternative].end(),
                         [&](const Symbol& symbol) {
                           return symbol.rule >= 0 ? !is_deriving[symbol.rule]
                                                   : symbol.bytes.none();
                         });
    });
  if (!is_deriving.at(kStart)) fail("no answer satisfies the request's schema or tools");
}

void Grammar::check_beginnings() const {
  const auto num_rules = static_cast<Rule>(rules_.size());
  const std::vector<bool> nullable = deriving_rules(*this, num_rules, /*with_bytes=*/false);
  enum class Mark : uint8_t { kNew, kOpen, kDone };
  std::vector<Mark> marks(num_rules, Mark::kNew);
  // Depth first, without recursion: a grammar's rules can stand in one long chain.
  struct Visit {
    Rule rule;
    std::vector<Rule> leading;
  };
  for (Rule first = 0; first < num_rules; ++first) {
    if (marks[first] != Mark::kNew) continue;
    std::vector<Visit> path;
    const auto open = [&](Rule rule) {
      marks[rule] = Mark::kOpen;
      path.push_back({rule, leading_rules(*this, rule, nullable)});
    };
    open(first);
    while (!path.empty()) {
      Visit& visit = path.back();
      if (visit.leading.empty()) {
        marks[visit.rule] = Mark::kDone;
        path.pop_back();
        continue;
      }
      const Rule next = visit.leading.back();
      visit.leading.pop_back();
      if (marks[next] == Mark::kOpen) fail("the grammar has a rule that begins with itself");
      if (marks[next] == Mark::kNew) open(next);
    }
  }
}

Symbol byte_in(std::string_view bytes) {
  Symbol symbol;
  for (const char c : bytes) symbol.bytes.set(static_cast<uint8_t>(c));
  return symbol;
}

Symbol byte_between(uint8_t first, uint8_t last) {
  Symbol symbol;
  for (int byte = first; byte <= last; ++byte) symbol.bytes.set(byte);
  return symbol;
}

Sequence literal(std::string_view text) {
  Sequence sequence;
  for (const char& c : text) sequence.push_back(byte_in({&c, 1}));
  return sequence;
}

void append(Sequence& sequence, const Sequence& more) {
  sequence.insert(sequence.end(), more.begin(), more.end());
}

Grammar::Rule repeated(Grammar& grammar, const Sequence& item, int64_t fewest, int64_t most,
                       const Sequence& separator) {
  // rules[i] derives what may follow the i-th item; beyond the last the rule follows itself.
  const int64_t num_rules = (most >= 0 ? most : std::max<int64_t>(fewest, 1)) + 1;
  std::vector<Grammar::Rule> rules;
  for (int64_t i = 0; i < num_rules; ++i) rules.push_back(grammar.add_rule());
  for (int64_t i = 0; i < num_rules; ++i) {
    if (i >= fewest) grammar.add_alternative(rules[i], {});
    if (i == most) continue;
    Sequence sequence = i == 0 ? Sequence() : separator;
    append(sequence, item);
    sequence.push_back({rules[std::min(i + 1, num_rules - 1)], {}});
    grammar.add_alternative(rules[i], std::move(sequence));
  }
  return rules.front();
}

// The automaton of Knuth, Morris and Pratt: rule i has read the marker's first i bytes.
Grammar::Rule bytes_without(Grammar& grammar, std::string_view marker) {
  CHECK(!marker.empty());
  const size_t size = marker.size();
  std::vector<Grammar::Rule> rules;
  for (size_t i = 0; i < size; ++i) rules.push_back(grammar.add_rule());
  for (size_t i = 0; i < size; ++i) {
    std::vector<Grammar::Bytes> bytes_to(size);
    for (int byte = 0; byte < 256; ++byte) {
      const std::string read = std::string(marker.substr(0, i)) + static_cast<char>(byte);
      size_t kept = read.size();
      while (!std::string_view(read).ends_with(marker.substr(0, kept))) --kept;
      if (kept < size) bytes_to[kept].set(byte);
    }
    grammar.add_alternative(rules[i], {});
    for (size_t to = 0; to < size; ++to)
      if (bytes_to[to].any())
        grammar.add_alternative(rules[i], {{-1, bytes_to[to]}, {rules[to], {}}});
  }
  return rules.front();
}

GrammarMatcher::GrammarMatcher(std::shared_ptr<const Grammar> grammar)
    : grammar_(std::move(grammar)) {
  Stacks stacks;
  Seen seen;
  for (const int32_t alternative : grammar_->alternatives(Grammar::kStart))
    expand({alternative, 0, kBottom}, seen, stacks);
  start_ = state_number(std::move(stacks));
}

size_t GrammarMatcher::FrameHash::operator()(const Frame& frame) const {
  uint64_t hash = static_cast<uint32_t>(frame.alternative);
  for (const int32_t part : {frame.position, frame.below})
    hash = (hash ^ static_cast<uint32_t>(part)) * 0x9E3779B97F4A7C15;
  return hash ^ (hash >> 32);
}

int32_t GrammarMatcher::frame_number(const Frame& frame) {
  const auto [it, is_new] = frame_numbers_.emplace(frame, static_cast<int32_t>(frames_.size()));
  if (is_new) frames_.push_back(frame);
  return it->second;
}

// Adds the stacks that `frame` stands for: those that wait for a byte once all rules are opened and
// all ended sequences left.
void GrammarMatcher::expand(const Frame& frame, Seen& seen, Stacks& stacks) {
  if (!seen.insert(frame).second) return;
  if (++num_expansions_ > kMostExpansions)
    fail("the answer's grammar leaves too many readings open; make its alternatives differ early");
  const Sequence& sequence = grammar_->sequence(frame.alternative);
  if (frame.position == std::ssize(sequence)) {
    if (frame.below == kBottom)
      stacks.may_end = true;
    else
      expand(Frame(frames_[frame.below]), seen, stacks);
    return;
  }
  const Symbol& symbol = sequence[frame.position];
  if (symbol.rule < 0) {
    stacks.tops.push_back(frame_number(frame));
    return;
  }
  // A rule that ends its sequence takes the sequence's place: a list needs no deeper stack.
  const bool is_last = frame.position + 1 == std::ssize(sequence);
  const int32_t below =
      is_last ? frame.below : frame_number({frame.alternative, frame.position + 1, frame.below});
  for (const int32_t alternative : grammar_->alternatives(symbol.rule))
    expand({alternative, 0, below}, seen, stacks);
}

GrammarMatcher::State GrammarMatcher::state_number(Stacks stacks) {
  if (stacks.tops.empty() && !stacks.may_end) return kDead;
  std::sort(stacks.tops.begin(), stacks.tops.end());
  stacks.tops.erase(std::unique(stacks.tops.begin(), stacks.tops.end()), stacks.tops.end());
  uint64_t hash = stacks.may_end;
  for (const int32_t top : stacks.tops)
    hash = (hash ^ static_cast<uint32_t>(top)) * 0x9E3779B97F4A7C15;
  std::vector<State>& candidates = states_by_hash_[hash];
  for (const State state : candidates)
    if (states_[state].tops == stacks.tops && states_[state].may_end == stacks.may_end)
      return state;
  const auto state = static_cast<State>(states_.size());
  candidates.push_back(state);
  num_tops_ += std::ssize(stacks.tops);
  states_.push_back(std::move(stacks));
  transitions_.emplace_back().fill(kUnknown);
  return state;
}

GrammarMatcher::State GrammarMatcher::find_next(State state, uint8_t byte) {
  Stacks stacks;
  Seen seen;
  Grammar::Bytes alike;  // bytes that go where this one does
  alike.set();
  num_expansions_ += std::ssize(states_[state].tops);
  for (const int32_t top : states_[state].tops) {
    const Frame frame = frames_[top];
    const Grammar::Bytes& bytes = grammar_->sequence(frame.alternative)[frame.position].bytes;
    alike &= bytes.test(byte) ? bytes : ~bytes;
    if (!bytes.test(byte)) continue;
    expand({frame.alternative, frame.position + 1, frame.below}, seen, stacks);
  }
  const State next = state_number(std::move(stacks));
  for (size_t other = 0; other < alike.size(); ++other)
    if (alike.test(other)) transitions_[state][other] = next;
  return next;
}

int32_t GrammarMatcher::copy_frame(const GrammarMatcher& from, int32_t number) {
  // From the bottom up: a stack may be deeper than recursion should go.
  std::vector<Frame> path;
  for (; number != kBottom; number = from.frames_[number].below)
    path.push_back(from.frames_[number]);
  int32_t below = kBottom;
  for (auto frame = path.rbegin(); frame != path.rend(); ++frame)
    below = frame_number({frame->alternative, frame->position, below});
  return below;
}

GrammarMatcher::State GrammarMatcher::forget_others(State state) {
  GrammarMatcher fresh(grammar_);
  Stacks stacks;
  stacks.may_end = may_end(state);
  for (const int32_t top : states_[state].tops) stacks.tops.push_back(fresh.copy_frame(*this, top));
  const State number = fresh.state_number(std::move(stacks));
  *this = std::move(fresh);
  return number;
}

}  // namespace fathom::text
