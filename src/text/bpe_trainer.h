// Learns a byte-level BPE vocabulary from text and writes it as a tokenizer.json that
// Tokenizer::load reads, with DeepSeek-V3's pre-tokenizer and the special tokens of V3.2.
//
// Ids: 0 BOS, 1 EOS, 2 padding; 3-258 the bytes in the order of the byte-level alphabet, as in
// DeepSeek-V3; then the merges by rank; the markers of the chat format are the last eight.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/pre_tokenizer.h"
#include "text/tokenizer_file.h"

namespace fathom::text {

struct BpeTrainerOptions {
  int vocab_size = 8192;     // with bytes and special tokens
  int max_token_bytes = 16;  // no token for a long rule of "=====": it would teach nothing
};

class BpeTrainer {
 public:
  // Throws Error if the vocabulary has no room for the bytes and special tokens.
  explicit BpeTrainer(const BpeTrainerOptions& options);

  // Counts the pieces of `text`. Invalid UTF-8 is replaced.
  void add(std::string_view text);
  int64_t num_bytes() const { return num_bytes_; }

  // Merges the most frequent pair until the vocabulary is full; of equal counts the pair with the
  // lower ids goes first, so the result depends on the counts alone. Throws Error if the text has
  // too few different pairs.
  TokenizerParts train() const;

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  BpeTrainerOptions options_;
  PreTokenizer pre_tokenizer_;
  std::unordered_map<std::string, int64_t, Hash, std::equal_to<>> piece_counts_;
  int64_t num_bytes_ = 0;
};

// The smallest vocabulary: the bytes and special tokens alone.
int smallest_vocab_size();

struct TrainTokenizerOptions {
  std::vector<std::filesystem::path> inputs;  // corpus folders (their "train" split) or text files
  std::filesystem::path output;               // folder
  BpeTrainerOptions bpe;
};

// Writes output/tokenizer.json and output/tokenizer_config.json.
void train_tokenizer(const TrainTokenizerOptions& options);

}  // namespace fathom::text
