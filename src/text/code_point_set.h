// Sets of Unicode characters, and how they are written: what the classes of a pattern stand for.
#pragma once

#include <cstdint>
#include <vector>

#include "text/grammar.h"

namespace fathom::text {

struct CodePointRange {
  uint32_t first, last;
  auto operator<=>(const CodePointRange&) const = default;
};

// Ascending, neither overlapping nor adjacent; without surrogates, which are no characters.
using CodePointSet = std::vector<CodePointRange>;

// Of ranges in any order.
CodePointSet code_point_set(std::vector<CodePointRange> ranges);
CodePointSet complement(const CodePointSet& set);

// How a string stands in an answer.
enum class StringWriting {
  kJson,  // within quotes: quotes, backslashes and controls escaped in the shortest way
  kBare,  // as it is, as parameters of a call are
};

// The ways to write a character of `set`, each a sequence of bytes: UTF-8, escaped where `writing`
// asks for it. Empty where the set is.
std::vector<Grammar::Sequence> written_characters(const CodePointSet& set, StringWriting writing);

}  // namespace fathom::text
