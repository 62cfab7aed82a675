#include "text/archive_text.h"

#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "base/check.h"

namespace fathom::text {

namespace {

// One gzip or zlib stream at the beginning of `bytes`; returns how many bytes it took.
size_t inflate_one(std::string_view bytes, std::string_view source, std::string* output) {
  z_stream stream{};
  // 15 + 32: the largest window, gzip and zlib headers both recognised.
  CHECK_EQ(inflateInit2(&stream, 15 + 32), Z_OK);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  int status = Z_OK;
  char buffer[1 << 16];
  while (status == Z_OK) {
    stream.next_out = reinterpret_cast<Bytef*>(buffer);
    stream.avail_out = sizeof buffer;
    status = inflate(&stream, Z_NO_FLUSH);
    output->append(buffer, sizeof buffer - stream.avail_out);
  }
  const size_t num_read = bytes.size() - stream.avail_in;
  inflateEnd(&stream);
  if (status != Z_STREAM_END) fail("{}: damaged or cut gzip data", source);
  return num_read;
}

uint32_t big_endian(std::string_view bytes) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

// R's serialisation in XDR form, as far as character vectors need it (R Internals, 1.8).
class RObject {
 public:
  explicit RObject(std::string_view bytes) : bytes_(bytes) {}

  // Nothing if the object is not a character vector.
  std::optional<std::string> character_vector() {
    constexpr uint32_t kCharacterVector = 16;
    if (!bytes_.starts_with("X\n")) return std::nullopt;
    bytes_.remove_prefix(2);
    const auto version = integer();
    integer();
    integer();
    if (version == 3) skip(integer().value_or(0));  // the name of the encoding
    const auto flags = integer();
    if (!flags || (*flags & 0xFF) != kCharacterVector) return std::nullopt;
    const auto count = integer();
    std::string text;
    for (uint32_t i = 0; count && i < *count; ++i) {
      integer();  // flags of the string
      const auto size = integer();
      if (!size || (*size != kMissing && *size > bytes_.size())) return std::nullopt;
      if (*size != kMissing) {
        text += bytes_.substr(0, *size);
        skip(*size);
      }
      text += '\n';
    }
    return text;
  }

 private:
  static constexpr uint32_t kMissing = 0xFFFFFFFF;  // NA

  std::optional<uint32_t> integer() {
    if (bytes_.size() < 4) return std::nullopt;
    const uint32_t value = big_endian(bytes_);
    bytes_.remove_prefix(4);
    return value;
  }
  void skip(size_t size) { bytes_.remove_prefix(std::min(size, bytes_.size())); }

  std::string_view bytes_;
};

std::string_view next_line(std::string_view* text) {
  const size_t end = std::min(text->find('\n'), text->size());
  const std::string_view line = text->substr(0, end);
  text->remove_prefix(std::min(end + 1, text->size()));
  return line;
}

std::string_view next_word(std::string_view* line) {
  const size_t end = std::min(line->find(' '), line->size());
  const std::string_view word = line->substr(0, end);
  line->remove_prefix(std::min(end + 1, line->size()));
  return word;
}

// "offset file type count word id word id ... | gloss"; the count is hexadecimal.
std::string gloss_line(std::string_view line) {
  const size_t bar = line.find(" | ");
  if (line.starts_with(' ') || bar == line.npos) return "";
  std::string_view gloss = line.substr(bar + 3);
  while (gloss.ends_with(' ')) gloss.remove_suffix(1);
  next_word(&line);
  next_word(&line);
  const std::string_view type = next_word(&line);
  const unsigned long count = std::strtoul(std::string(next_word(&line)).c_str(), nullptr, 16);
  std::string text;
  for (unsigned long i = 0; i < count; ++i) {
    text += text.empty() ? "" : ", ";
    text += next_word(&line);
    next_word(&line);
  }
  std::replace(text.begin(), text.end(), '_', ' ');
  const char* kind = type == "n"   ? "noun"
                     : type == "v" ? "verb"
                     : type == "r" ? "adverb"
                                   : "adjective";
  return fmt::format("{} ({}): {}\n", text, kind, gloss);
}

}  // namespace

std::string inflate_all(std::string_view bytes, std::string_view source) {
  std::string output;
  while (!bytes.empty()) bytes.remove_prefix(inflate_one(bytes, source, &output));
  return output;
}

std::vector<std::string> wordnet_glosses(std::string_view data_file) {
  constexpr int kLinesPerDocument = 50;
  std::vector<std::string> documents;
  int num_lines = 0;
  while (!data_file.empty()) {
    const std::string line = gloss_line(next_line(&data_file));
    if (line.empty()) continue;
    if (num_lines++ % kLinesPerDocument == 0) documents.emplace_back();
    documents.back() += line;
  }
  return documents;
}

std::vector<std::string> dictionary_articles(std::string_view dictionary) {
  std::vector<std::string> articles;
  bool follows_blank = true;
  while (!dictionary.empty()) {
    const std::string_view line = next_line(&dictionary);
    const bool is_blank = line.find_first_not_of(' ') == line.npos;
    if (articles.empty() || (follows_blank && !is_blank && line[0] != ' ')) articles.emplace_back();
    follows_blank = is_blank;
    articles.back() += line;
    articles.back() += '\n';
  }
  return articles;
}

std::vector<std::string> r_character_vectors(std::string_view rdb, std::string_view source) {
  std::vector<std::string> documents;
  // Each record: the inflated size, big-endian, then a zlib stream.
  while (rdb.size() > 4) {
    const uint32_t size = big_endian(rdb);
    rdb.remove_prefix(4);
    std::string object;
    rdb.remove_prefix(inflate_one(rdb, source, &object));
    if (object.size() != size) {
      fail("{}: an object of {} bytes, expected {}", source, object.size(), size);
    }
    if (auto text = RObject(object).character_vector()) documents.push_back(std::move(*text));
  }
  return documents;
}

}  // namespace fathom::text
