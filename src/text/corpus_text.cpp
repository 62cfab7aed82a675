#include "text/corpus_text.h"

#include <algorithm>

#include "base/check.h"
#include "text/archive_text.h"
#include "text/html_text.h"
#include "text/markup_text.h"
#include "text/utf8.h"

namespace fathom::text {

namespace {

constexpr size_t kMinDocumentBytes = 200;
constexpr double kMinLetterShare = 0.4;
constexpr double kMaxNonAsciiShare = 0.2;
constexpr size_t kMaxCodeLineBytes = 1000;

std::string from_windows_1252(std::string_view bytes) {
  constexpr uint32_t kHigh[32] = {0x20AC, 0xFFFD, 0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021,
                                  0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0xFFFD, 0x017D, 0xFFFD,
                                  0xFFFD, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014,
                                  0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0xFFFD, 0x017E, 0x0178};
  std::string text;
  text.reserve(bytes.size());
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    append_utf8(&text, byte >= 0x80 && byte < 0xA0 ? kHigh[byte - 0x80] : byte);
  }
  return text;
}

// One line without what a normalised line can't have.
void append_line(std::string_view line, std::string* text) {
  const size_t begin = text->size();
  for (const char c : line) {
    if (c == '\t' || static_cast<uint8_t>(c) >= 0x20) {
      if (c != 0x7F) text->push_back(c);
    }
  }
  while (text->size() > begin && (text->back() == ' ' || text->back() == '\t')) text->pop_back();
}

std::vector<std::string> extract(std::string_view kind, std::string_view bytes,
                                 std::string_view source) {
  if (kind == "html") return {html_to_text(bytes)};
  if (kind == "rst") return {rst_to_text(bytes)};
  if (kind == "pod") return {pod_to_text(bytes)};
  if (kind == "wordnet") return wordnet_glosses(bytes);
  if (kind == "dictionary") return dictionary_articles(bytes);
  if (kind == "r-strings") return r_character_vectors(bytes, source);
  CHECK(kind == "text" || kind == "code", "kind {}", kind);
  return {std::string(bytes)};
}

}  // namespace

bool is_corpus_kind(std::string_view kind) {
  constexpr std::string_view kKinds[] = {"text", "code",    "html",       "rst",
                                         "pod",  "wordnet", "dictionary", "r-strings"};
  return std::find(std::begin(kKinds), std::end(kKinds), kind) != std::end(kKinds);
}

std::vector<std::string> extract_documents(std::string_view kind, std::string_view bytes,
                                           std::string_view source) {
  std::string inflated;
  if (bytes.starts_with("\x1f\x8b")) {
    inflated = inflate_all(bytes, source);
    bytes = inflated;
  }
  std::vector<std::string> documents;
  for (const std::string& raw : extract(kind, bytes, source)) {
    std::string text = normalise_text(raw);
    if (keep_document(kind, text)) documents.push_back(std::move(text));
  }
  return documents;
}

std::string normalise_text(std::string_view bytes) {
  std::string converted;
  if (!is_valid_utf8(bytes)) {
    converted = from_windows_1252(bytes);
    bytes = converted;
  }
  if (bytes.starts_with("\uFEFF")) bytes.remove_prefix(3);
  std::string text;
  text.reserve(bytes.size());
  int num_blank = 0;
  while (!bytes.empty()) {
    const size_t end = std::min(bytes.find('\n'), bytes.size());
    const size_t before = text.size();
    append_line(bytes.substr(0, end), &text);
    bytes.remove_prefix(std::min(end + 1, bytes.size()));
    const bool is_blank = text.size() == before;
    num_blank = is_blank ? num_blank + 1 : 0;
    if (before == 0 && is_blank) continue;
    if (num_blank <= 2) text += '\n';
  }
  while (text.ends_with("\n\n")) text.pop_back();
  return text;
}

bool keep_document(std::string_view kind, std::string_view text) {
  if (text.size() < kMinDocumentBytes) return false;
  size_t num_letters = 0, num_non_ascii = 0, line_size = 0, longest_line = 0;
  for (const char c : text) {
    num_letters += (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
    num_non_ascii += static_cast<uint8_t>(c) >= 0x80;
    line_size = c == '\n' ? 0 : line_size + 1;
    longest_line = std::max(longest_line, line_size);
  }
  const auto size = static_cast<double>(text.size());
  if (num_letters < kMinLetterShare * size || num_non_ascii > kMaxNonAsciiShare * size) {
    return false;
  }
  return kind != "code" || longest_line <= kMaxCodeLineBytes;
}

}  // namespace fathom::text
