#include "text/code_point_set.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "text/utf8.h"

namespace fathom::text {
namespace {

using Sequence = Grammar::Sequence;

constexpr uint32_t kLast = 0x10FFFF;
constexpr CodePointRange kSurrogates = {0xD800, 0xDFFF};

// The bits that the last `num_bytes` bytes of a UTF-8 sequence hold.
uint32_t tail_mask(int num_bytes) { return (1u << 6 * num_bytes) - 1; }

Grammar::Symbol bytes_at(const std::string& first, const std::string& last, size_t i) {
  return byte_between(static_cast<uint8_t>(first[i]), static_cast<uint8_t>(last[i]));
}

// Cuts [first, last] until all of a piece have as many bytes, and every byte but the first that
// differs takes all its values: then each byte's choice depends on no other.
void add_utf8(uint32_t first, uint32_t last, std::vector<Sequence>& all) {
  for (const uint32_t most : {0x7Fu, 0x7FFu, 0xFFFFu}) {
    if (first > most || last <= most) continue;
    add_utf8(first, most, all);
    return add_utf8(most + 1, last, all);
  }
  for (int num_bytes = 1; num_bytes < 4 && last > 0x7F; ++num_bytes) {
    const uint32_t mask = tail_mask(num_bytes);
    if ((first & ~mask) == (last & ~mask)) break;
    if ((first & mask) != 0) {
      add_utf8(first, first | mask, all);
      return add_utf8((first | mask) + 1, last, all);
    }
    if ((last & mask) != mask) {
      add_utf8(first, (last & ~mask) - 1, all);
      return add_utf8(last & ~mask, last, all);
    }
  }
  std::string from, to;
  append_utf8(&from, first);
  append_utf8(&to, last);
  Sequence& sequence = all.emplace_back();
  for (size_t i = 0; i < from.size(); ++i) sequence.push_back(bytes_at(from, to, i));
}

bool is_escaped(uint32_t c) { return c < 0x20 || c == '"' || c == '\\'; }

std::string escaped(uint32_t c) {
  switch (c) {
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    default:
      return fmt::format("\\u{:04x}", c);
  }
}

}  // namespace

CodePointSet code_point_set(std::vector<CodePointRange> ranges) {
  std::sort(ranges.begin(), ranges.end());
  CodePointSet set;
  const auto add = [&](uint32_t first, uint32_t last) {
    if (first > last) return;
    if (!set.empty() && first <= set.back().last + 1)
      set.back().last = std::max(set.back().last, last);
    else
      set.push_back({first, last});
  };
  for (const CodePointRange& range : ranges) {
    add(range.first, std::min(range.last, kSurrogates.first - 1));
    add(std::max(range.first, kSurrogates.last + 1), std::min(range.last, kLast));
  }
  return set;
}

CodePointSet complement(const CodePointSet& set) {
  std::vector<CodePointRange> gaps;
  uint32_t next = 0;
  for (const CodePointRange& range : set) {
    if (range.first > next) gaps.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLast) gaps.push_back({next, kLast});
  return code_point_set(std::move(gaps));
}

std::vector<Sequence> written_characters(const CodePointSet& set, StringWriting writing) {
  std::vector<Sequence> all;
  for (const auto& [first, last] : set) {
    uint32_t plain = first;
    for (uint32_t c = first; writing == StringWriting::kJson && c <= std::min(last, 0x7Fu); ++c) {
      if (!is_escaped(c)) continue;
      if (plain < c) add_utf8(plain, c - 1, all);
      all.push_back(literal(escaped(c)));
      plain = c + 1;
    }
    if (plain <= last) add_utf8(plain, last, all);
  }
  return all;
}

}  // namespace fathom::text
