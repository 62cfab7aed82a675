#include "text/pattern.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>

#include "base/check.h"
#include "text/chat_markup.h"
#include "text/utf8.h"

namespace fathom::text {
namespace {

using Rule = Grammar::Rule;
using Sequence = Grammar::Sequence;

constexpr size_t kMostBytes = 4096;
constexpr int kMostGroups = 100;  // within one another
constexpr uint32_t kEnd = ~0u;    // behind the last character

CodePointSet one_character(uint32_t c) { return {{c, c}}; }
CodePointSet digits() { return {{'0', '9'}}; }
CodePointSet word_characters() { return {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}; }
CodePointSet line_ends() { return {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}; }
CodePointSet white_space() {
  return {{'\t', '\r'},     {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680}, {0x2000, 0x200A},
          {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
}

Pattern character_of(CodePointSet characters) {
  Pattern pattern{.kind = Pattern::Kind::kCharacter};
  pattern.characters = std::move(characters);
  return pattern;
}

Pattern made_of(Pattern::Kind kind, std::vector<Pattern> parts) {
  Pattern pattern{.kind = kind};
  pattern.parts = std::move(parts);
  return pattern;
}

Pattern repeated_pattern(Pattern part, int64_t fewest, int64_t most) {
  Pattern pattern = made_of(Pattern::Kind::kRepeated, {});
  pattern.parts.push_back(std::move(part));
  pattern.fewest = fewest;
  pattern.most = most;
  return pattern;
}

class PatternParser {
 public:
  explicit PatternParser(std::string_view text) : text_(code_points(text)) {}

  Pattern whole() {
    Pattern pattern = alternatives(0);
    if (at_ < text_.size()) fail_here("a ) that closes nothing");
    return pattern;
  }

 private:
  uint32_t peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : kEnd;
  }
  bool take(uint32_t c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  bool take(std::string_view characters) {
    for (size_t i = 0; i < characters.size(); ++i)
      if (peek(i) != static_cast<uint8_t>(characters[i])) return false;
    at_ += characters.size();
    return true;
  }
  [[noreturn]] void fail_here(std::string_view what) const {
    fail("{} at character {}", what, at_ + 1);
  }

  // At level 0 a branch is found anywhere between its anchors; within groups it has none.
  Pattern alternatives(int level) {
    if (level > kMostGroups) fail_here(fmt::format("groups within {} groups", kMostGroups));
    std::vector<Pattern> branches;
    do {
      branches.push_back(branch(level));
    } while (take('|'));
    return branches.size() == 1 ? std::move(branches.front())
                                : made_of(Pattern::Kind::kAlternatives, std::move(branches));
  }

  Pattern branch(int level) {
    std::vector<Pattern> terms;
    const bool from_start = level == 0 && take('^');
    bool to_end = false;
    while (peek() != kEnd && peek() != '|' && peek() != ')') {
      to_end = level == 0 && peek() == '$' && (peek(1) == kEnd || peek(1) == '|');
      if (to_end) break;
      terms.push_back(term(level));
    }
    if (to_end) ++at_;
    if (level == 0 && !from_start) terms.insert(terms.begin(), any_characters(0, -1));
    if (level == 0 && !to_end) terms.push_back(any_characters(0, -1));
    return terms.size() == 1 ? std::move(terms.front())
                             : made_of(Pattern::Kind::kSequence, std::move(terms));
  }

  Pattern term(int level) {
    Pattern part = atom(level);
    const std::optional<std::pair<int64_t, int64_t>> counts = quantifier();
    if (!counts) return part;
    take('?');  // lazily: the same strings
    return repeated_pattern(std::move(part), counts->first, counts->second);
  }

  std::optional<std::pair<int64_t, int64_t>> quantifier() {
    if (take('*')) return {{0, -1}};
    if (take('+')) return {{1, -1}};
    if (take('?')) return {{0, 1}};
    const size_t begin = at_;
    if (!take('{')) return {};
    const std::optional<int64_t> fewest = number();
    std::optional<int64_t> most = fewest;
    if (fewest && take(',')) most = peek() == '}' ? -1 : number();
    if (!fewest || !most || !take('}')) {
      at_ = begin;
      fail_here("a { that begins no {n}, {n,} or {n,m} (write \\{ for the character)");
    }
    if (*most >= 0 && *most < *fewest)
      fail_here("a quantifier whose bounds are in the wrong order");
    return {{*fewest, *most}};
  }

  std::optional<int64_t> number() {
    if (peek() < '0' || peek() > '9') return {};
    int64_t value = 0;
    for (; peek() >= '0' && peek() <= '9'; ++at_) {
      value = value * 10 + (peek() - '0');
      if (value > Grammar::kMostRepeats)
        fail_here(fmt::format("a count above {}", Grammar::kMostRepeats));
    }
    return value;
  }

  Pattern atom(int level) {
    switch (peek()) {
      case '(':
        return group(level);
      case '[':
        return character_of(character_class());
      case '.':
        ++at_;
        return character_of(complement(line_ends()));
      case '\\':
        return character_of(escape(false));
      case '^':
      case '$':
        fail_here("^ and $ elsewhere than at the pattern's ends");
      case '*':
      case '+':
      case '?':
      case '{':
        fail_here("a quantifier of nothing");
      default:
        return character_of(one_character(text_[at_++]));
    }
  }

  Pattern group(int level) {
    ++at_;
    if (peek() == '?' && !take("?:")) {
      if (!take("?<") || peek() == '=' || peek() == '!')
        fail_here("looking around, or an unknown kind of group,");
      while (peek() != kEnd && peek() != '>') ++at_;
      if (!take('>')) fail_here("a group's name without its end");
    }
    Pattern inner = alternatives(level + 1);
    if (!take(')')) fail_here("a group without its )");
    return inner;
  }

  CodePointSet character_class() {
    ++at_;
    const bool is_negated = take('^');
    std::vector<CodePointRange> ranges;
    while (!take(']')) {
      if (peek() == kEnd) fail_here("a class without its ]");
      const CodePointSet first = class_member();
      ranges.insert(ranges.end(), first.begin(), first.end());
      if (peek() != '-' || peek(1) == ']' || peek(1) == kEnd) continue;
      ++at_;
      const CodePointSet last = class_member();
      const auto is_one = [](const CodePointSet& set) {
        return set.size() == 1 && set[0].first == set[0].last;
      };
      if (!is_one(first) || !is_one(last) || last[0].first < first[0].first)
        fail_here("a range of a class that does not go from one character to a later one");
      ranges.push_back({first[0].first, last[0].first});
    }
    const CodePointSet set = code_point_set(std::move(ranges));
    return is_negated ? complement(set) : set;
  }

  CodePointSet class_member() {
    if (peek() == '\\') return escape(true);
    return one_character(text_[at_++]);
  }

  CodePointSet escape(bool is_in_class) {
    ++at_;
    const uint32_t c = peek();
    if (c == 'u' || c == 'x') return one_character(numbered());
    if (const auto set = named(c)) {
      ++at_;
      return *set;
    }
    const bool is_null = c == '0' && !(peek(1) >= '0' && peek(1) <= '9');
    const bool is_backspace = c == 'b' && is_in_class;
    const bool is_letter = (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
    if (!is_null && !is_backspace && (c == kEnd || is_letter || (c >= '0' && c <= '9')))
      fail_here("a back reference, boundary, property or unknown escape");
    ++at_;
    return one_character(is_null ? 0 : is_backspace ? '\b' : c);
  }

  static std::optional<CodePointSet> named(uint32_t letter) {
    switch (letter) {
      case 'd':
        return digits();
      case 'D':
        return complement(digits());
      case 'w':
        return word_characters();
      case 'W':
        return complement(word_characters());
      case 's':
        return white_space();
      case 'S':
        return complement(white_space());
      case 't':
        return one_character('\t');
      case 'n':
        return one_character('\n');
      case 'r':
        return one_character('\r');
      case 'f':
        return one_character('\f');
      case 'v':
        return one_character('\v');
      default:
        return {};
    }
  }

  // \xHH, \uHHHH (two for what lies beyond), \u{H...}.
  uint32_t numbered() {
    const bool is_long = text_[at_++] == 'u';
    if (is_long && take('{')) {
      const uint32_t c = hexadecimal(1, 6);
      if (!take('}')) fail_here("a \\u{...} without its }");
      return checked(c);
    }
    const uint32_t c = hexadecimal(is_long ? 4 : 2, is_long ? 4 : 2);
    const bool is_high = c >= 0xD800 && c < 0xDC00;
    if (!is_high || !take("\\u")) return checked(c);
    const uint32_t low = hexadecimal(4, 4);
    if (low < 0xDC00 || low > 0xDFFF) fail_here("half of a surrogate pair");
    return 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
  }

  uint32_t checked(uint32_t c) const {
    if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) fail_here("what is no character, ending");
    return c;
  }

  uint32_t hexadecimal(int fewest, int most) {
    uint32_t value = 0;
    int count = 0;
    for (; count < most; ++count, ++at_) {
      const uint32_t c = peek();
      const uint32_t letter = c | 0x20;
      const bool is_digit = c >= '0' && c <= '9';
      if (!is_digit && (c > 'f' || letter < 'a' || letter > 'f')) break;
      value = value * 16 + (is_digit ? c - '0' : letter - 'a' + 10);
    }
    if (count < fewest) fail_here("too few hexadecimal digits");
    return value;
  }

  std::vector<uint32_t> text_;
  size_t at_ = 0;
};

bool may_be_empty(const Pattern& pattern) {
  switch (pattern.kind) {
    case Pattern::Kind::kCharacter:
      return false;
    case Pattern::Kind::kSequence:
      return std::all_of(pattern.parts.begin(), pattern.parts.end(), may_be_empty);
    case Pattern::Kind::kAlternatives:
      return std::any_of(pattern.parts.begin(), pattern.parts.end(), may_be_empty);
    case Pattern::Kind::kRepeated:
      return pattern.fewest == 0 || may_be_empty(pattern.parts[0]);
  }
  return false;
}

class PatternGrammar {
 public:
  PatternGrammar(Grammar& grammar, StringWriting writing) : grammar_(grammar), writing_(writing) {}

  bool has_strings(const Pattern& pattern) const {
    const auto part_has = [this](const Pattern& part) { return has_strings(part); };
    switch (pattern.kind) {
      case Pattern::Kind::kCharacter:
        return !allowed(pattern.characters).empty();
      case Pattern::Kind::kSequence:
        return std::all_of(pattern.parts.begin(), pattern.parts.end(), part_has);
      case Pattern::Kind::kAlternatives:
        return std::any_of(pattern.parts.begin(), pattern.parts.end(), part_has);
      case Pattern::Kind::kRepeated:
        return pattern.fewest == 0 || has_strings(pattern.parts[0]);
    }
    return false;
  }

  Sequence sequence_of(const Pattern& pattern) {
    if (pattern.kind == Pattern::Kind::kCharacter) return characters(pattern.characters);
    if (pattern.kind == Pattern::Kind::kSequence) {
      Sequence all;
      for (const Pattern& part : pattern.parts) append(all, sequence_of(part));
      return all;
    }
    const auto [it, is_new] = rules_.try_emplace(&pattern, Rule{});
    if (is_new) it->second = define(pattern);
    return {{it->second, {}}};
  }

 private:
  Rule define(const Pattern& pattern) {
    if (pattern.kind == Pattern::Kind::kAlternatives) {
      const Rule rule = grammar_.add_rule();
      for (const Pattern& part : pattern.parts) grammar_.add_alternative(rule, sequence_of(part));
      return rule;
    }
    const Pattern& part = pattern.parts[0];
    return repeated(grammar_, not_empty(part), may_be_empty(part) ? 0 : pattern.fewest,
                    pattern.most);
  }

  // The pattern's strings but the empty one: repeated, that would be a rule that begins with
  // itself.
  Sequence not_empty(const Pattern& pattern) {
    if (!may_be_empty(pattern)) return sequence_of(pattern);
    const auto [it, is_new] = rules_without_empty_.try_emplace(&pattern, Rule{});
    if (is_new) it->second = define_without_empty(pattern);
    return {{it->second, {}}};
  }

  Rule define_without_empty(const Pattern& pattern) {
    if (pattern.kind == Pattern::Kind::kSequence) return sequence_without_empty(pattern);
    const Rule rule = grammar_.add_rule();
    if (pattern.kind == Pattern::Kind::kAlternatives) {
      for (const Pattern& part : pattern.parts) grammar_.add_alternative(rule, not_empty(part));
    } else if (pattern.most != 0) {
      const Pattern& part = pattern.parts[0];
      const int64_t fewest = may_be_empty(part) ? 1 : std::max<int64_t>(pattern.fewest, 1);
      grammar_.add_alternative(rule,
                               {{repeated(grammar_, not_empty(part), fewest, pattern.most), {}}});
    }
    return rule;
  }

  // From the end: what stands from a part on, and the same where it must be something. All parts
  // may be empty here.
  Rule sequence_without_empty(const Pattern& pattern) {
    Rule rest = grammar_.add_rule(), rest_without_empty = grammar_.add_rule();
    grammar_.add_alternative(rest, {});
    for (size_t i = pattern.parts.size(); i-- > 0;) {
      const auto followed = [&](Sequence sequence) {
        sequence.push_back({rest, {}});
        return sequence;
      };
      const Rule from = grammar_.add_rule(), from_without_empty = grammar_.add_rule();
      grammar_.add_alternative(from, followed(sequence_of(pattern.parts[i])));
      grammar_.add_alternative(from_without_empty, followed(not_empty(pattern.parts[i])));
      grammar_.add_alternative(from_without_empty, {{rest_without_empty, {}}});
      rest = from;
      rest_without_empty = from_without_empty;
    }
    return rest_without_empty;
  }

  Sequence characters(const CodePointSet& set) {
    const auto [it, is_new] = written_.try_emplace(set, Sequence{});
    if (!is_new) return it->second;
    std::vector<Sequence> ways = written_characters(allowed(set), writing_);
    if (ways.size() == 1) return it->second = std::move(ways.front());
    const Rule rule = grammar_.add_rule();
    for (Sequence& way : ways) grammar_.add_alternative(rule, std::move(way));
    return it->second = {{rule, {}}};
  }

  CodePointSet allowed(const CodePointSet& set) const {
    return writing_ == StringWriting::kBare ? without(set, markup_bar()) : set;
  }

  static uint32_t markup_bar() { return code_points(markup::kDsml).front(); }

  static CodePointSet without(const CodePointSet& set, uint32_t character) {
    CodePointSet rest = complement(set);
    rest.push_back({character, character});
    return complement(code_point_set(std::move(rest)));
  }

  Grammar& grammar_;
  StringWriting writing_;
  std::map<const Pattern*, Rule> rules_, rules_without_empty_;
  std::map<CodePointSet, Sequence> written_;
};

}  // namespace

Pattern any_characters(int64_t fewest, int64_t most) {
  return repeated_pattern(character_of(complement({})), fewest, most);
}

Pattern parse_pattern(std::string_view text) {
  if (!is_valid_utf8(text)) fail("it is not valid UTF-8");
  if (text.size() > kMostBytes) fail("more than {} bytes", kMostBytes);
  return PatternParser(text).whole();
}

Rule pattern_rule(Grammar& grammar, const Pattern& pattern, StringWriting writing) {
  PatternGrammar rules(grammar, writing);
  if (!rules.has_strings(pattern)) fail("no string has it");
  const Rule rule = grammar.add_rule();
  grammar.add_alternative(rule, rules.sequence_of(pattern));
  return rule;
}

}  // namespace fathom::text
