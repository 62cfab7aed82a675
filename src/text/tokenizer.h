// Byte-level BPE tokenizer read from a Hugging Face tokenizer.json.
//
// Supported: model BPE without byte_fallback, no normalizer (null or an empty Sequence), a
// pre-tokenizer Sequence of Split{Regex, Isolated} stages (through PCRE2's JIT) ending in a
// ByteLevel without its own regex, decoder ByteLevel, added tokens without lstrip, rstrip or
// single_word. Anything else is refused by name. The post-processor isn't applied: encode adds no
// tokens of its own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fathom::text {

using TokenId = int32_t;

class Tokenizer {
 public:
  // Throws Error naming the file, the field, what was expected and found.
  static Tokenizer load(const std::filesystem::path& tokenizer_json);
  // `source` names the text in errors.
  static Tokenizer parse(std::string_view tokenizer_json, std::string_view source);

  // Added (special) tokens in the text become their ids; nothing is added before or after. Invalid
  // UTF-8 is taken byte by byte (decode gives the same bytes back). Thread-safe.
  std::vector<TokenId> encode(std::string_view text) const;
  // Concatenated bytes of the tokens; special tokens appear as written. Ids outside the vocabulary
  // throw Error.
  std::string decode(std::span<const TokenId> ids) const;
  const std::string& token_bytes(TokenId id) const;
  bool is_special(TokenId id) const;
  std::optional<TokenId> find(std::string_view token) const;  // exact content, added tokens first
  int vocab_size() const;                                     // largest id + 1

 private:
  struct State;
  std::shared_ptr<const State> state_;  // immutable, so copies of a Tokenizer share it
};

// Turns a growing list of tokens into text without ever emitting part of a UTF-8 character. Bytes
// that can't begin or continue a valid character come out as U+FFFD, so the output is always valid
// UTF-8.
class StreamingDecoder {
 public:
  explicit StreamingDecoder(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}
  std::string push(TokenId id);
  std::string finish();  // what an unfinished character leaves: U+FFFD or nothing

 private:
  Tokenizer tokenizer_;
  std::string pending_;
};

}  // namespace fathom::text
