#include "text/tokenizer.h"

#include <algorithm>

#include "base/check.h"
#include "base/file.h"
#include "text/added_tokens.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_file.h"
#include "text/utf8.h"

namespace fathom::text {

struct Tokenizer::State {
  PreTokenizer pre_tokenizer;
  AddedTokens added_tokens;
  Bpe bpe;
  std::vector<std::string> contents;  // by id, added tokens too; empty: no such token
  std::vector<uint8_t> is_special;

  // Text without added tokens.
  void encode_plain(std::string_view text, std::vector<TokenId>* ids) const {
    while (!text.empty()) {
      const size_t valid = valid_utf8_prefix(text);
      PreTokenizer::Cursor cursor(pre_tokenizer, text.substr(0, valid));
      for (std::string_view piece; cursor.next(&piece);) bpe.encode(piece, ids);
      text.remove_prefix(valid);
      if (text.empty()) return;
      const int length = next_utf8_sequence(text).length;
      for (int i = 0; i < length; ++i) bpe.encode(text.substr(i, 1), ids);
      text.remove_prefix(length);
    }
  }
};

Tokenizer Tokenizer::load(const std::filesystem::path& tokenizer_json) {
  return parse(base::read_file(tokenizer_json), tokenizer_json.string());
}

Tokenizer Tokenizer::parse(std::string_view tokenizer_json, std::string_view source) {
  TokenizerParts parts = read_tokenizer_parts(tokenizer_json, source);
  std::array<TokenId, 256> byte_ids;
  byte_ids.fill(-1);
  size_t num_ids = parts.tokens.size();
  for (size_t id = 0; id < parts.tokens.size(); ++id) {
    const std::string& bytes = parts.tokens[id];
    if (bytes.size() == 1) byte_ids[static_cast<uint8_t>(bytes[0])] = static_cast<TokenId>(id);
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (byte_ids[byte] < 0) {
      fail(
          "{}: model.vocab: has no token for the byte 0x{:02x}; a byte-level vocabulary has all "
          "256",
          source, byte);
    }
  }
  for (const AddedToken& token : parts.added_tokens) {
    num_ids = std::max(num_ids, static_cast<size_t>(token.id) + 1);
  }
  std::vector<std::string> contents = parts.tokens;
  std::vector<uint8_t> is_special(num_ids);
  contents.resize(num_ids);
  for (const AddedToken& token : parts.added_tokens) {
    contents[token.id] = token.content;
    is_special[token.id] = token.is_special;
  }
  Tokenizer tokenizer;
  try {
    tokenizer.state_ = std::make_shared<const State>(
        State{PreTokenizer(parts.splits), AddedTokens(std::move(parts.added_tokens)),
              Bpe(std::move(parts.tokens), byte_ids, parts.merges), std::move(contents),
              std::move(is_special)});
  } catch (const Error& error) {
    fail("{}: pre_tokenizer: {}", source, error.what());
  }
  return tokenizer;
}

std::vector<TokenId> Tokenizer::encode(std::string_view text) const {
  std::vector<TokenId> ids;
  ids.reserve(text.size() / 3);
  while (!text.empty()) {
    const AddedTokens::Match match = state_->added_tokens.find_first(text);
    state_->encode_plain(text.substr(0, match.begin), &ids);
    if (match.length > 0) ids.push_back(match.id);
    text.remove_prefix(match.begin + match.length);
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const TokenId> ids) const {
  std::string text;
  for (const TokenId id : ids) text += token_bytes(id);
  return text;
}

const std::string& Tokenizer::token_bytes(TokenId id) const {
  if (id < 0 || id >= vocab_size() || state_->contents[id].empty()) {
    fail("token id {} is not in the vocabulary of {} tokens", id, vocab_size());
  }
  return state_->contents[id];
}

bool Tokenizer::is_special(TokenId id) const {
  return id >= 0 && id < vocab_size() && state_->is_special[id];
}

std::optional<TokenId> Tokenizer::find(std::string_view token) const {
  if (const AddedToken* added = state_->added_tokens.find(token)) return added->id;
  return state_->bpe.find(token);
}

int Tokenizer::vocab_size() const { return static_cast<int>(state_->contents.size()); }

std::string StreamingDecoder::push(TokenId id) {
  pending_ += tokenizer_.token_bytes(id);
  size_t complete = 0;
  while (complete < pending_.size()) {
    const Utf8Sequence sequence = next_utf8_sequence(std::string_view(pending_).substr(complete));
    if (sequence.kind == Utf8Kind::kIncomplete) break;
    complete += sequence.length;
  }
  std::string text = replace_invalid_utf8(std::string_view(pending_).substr(0, complete));
  pending_.erase(0, complete);
  return text;
}

std::string StreamingDecoder::finish() {
  std::string text = replace_invalid_utf8(pending_);
  pending_.clear();
  return text;
}

}  // namespace fathom::text
