// Regular expressions as JSON Schema's "pattern" has them (ECMA-262 with the u flag), as grammars
// of the strings in which they are found.
//
// Followed: characters and their escapes, ".", classes, \d \w \s and their opposites, groups
// (named ones too), alternatives, all quantifiers, ^ and $ at the ends of the pattern's
// alternatives. Looking around, back references, word boundaries and Unicode's properties are no
// part of what a grammar can follow, or of what this does: refused, as are more than 4,096 bytes.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "text/code_point_set.h"
#include "text/grammar.h"

namespace fathom::text {

// A syntax tree. What a string must be as a whole: "abc" is read as any characters, abc, any
// characters.
struct Pattern {
  enum class Kind {
    kCharacter,     // one of `characters`
    kSequence,      // all parts, in order; without parts, nothing
    kAlternatives,  // one of the parts; without parts, no string at all
    kRepeated,      // the one part, from `fewest` to `most` (-1: any number of) times
  } kind = Kind::kSequence;
  CodePointSet characters = {};
  std::vector<Pattern> parts = {};
  int64_t fewest = 1, most = 1;
};

Pattern any_characters(int64_t fewest, int64_t most);

// Throws Error naming the place in the pattern where it is not followed.
Pattern parse_pattern(std::string_view text);

// The rule of the strings, without quotes. Bare ones are kept free of the bar that the markup of
// calls begins with, in and outside of classes. Throws Error where there are no such strings.
Grammar::Rule pattern_rule(Grammar& grammar, const Pattern& pattern, StringWriting writing);

}  // namespace fathom::text
