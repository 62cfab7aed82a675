// Tokens on disk and the order in which training reads them.
//
// A folder of shards, each a safetensors file with one tensor `tokens` (U16 where the vocabulary
// allows, I32 otherwise), and tokens.json with the counts, written last. A document is BOS, its
// tokens, EOS; BOS therefore marks where documents packed into one row begin.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "model/loss.h"
#include "model/safetensors.h"
#include "pretrain/fill_in_the_middle.h"
#include "text/tokenizer.h"

namespace fathom::pretrain {

struct TokenizeOptions {
  std::filesystem::path corpus;     // a folder as text::build_corpus leaves it
  std::filesystem::path tokenizer;  // folder with tokenizer.json
  std::filesystem::path output;
  int64_t shard_tokens = 16 << 20;
};

// Tokenises both splits. Does nothing if `output` was made from the same corpus and tokenizer.
void tokenize_corpus(const TokenizeOptions& options);

// What a folder's tokens were made from, as hashes of all text and of tokenizer.json; empty where
// tokens.json does not say.
struct TokenOrigin {
  std::string corpus, tokenizer;
};
TokenOrigin token_origin(const std::filesystem::path& folder);
std::string hash_of_file(const std::filesystem::path& path);

// Throws Error where the tokens of `folder` were not made for this model: another vocabulary or
// BOS.
void check_tokens_fit(const std::filesystem::path& folder, const model::Config& config);

// One split's shards, mapped. A row is sequence_length + 1 consecutive tokens of a shard, with
// documents reordered where `fim` asks for it.
class TokenRows {
 public:
  TokenRows(const std::filesystem::path& folder, const std::string& split, int64_t sequence_length,
            FimOptions fim = {});

  int64_t num_rows() const { return first_row_.back(); }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_bytes() const { return num_bytes_; }  // of the documents' text
  // Tokens that are predicted, for each byte of text: all but BOS.
  double targets_per_byte() const;
  // The row's sequence_length + 1 tokens. Throws Error where one is beyond the vocabulary.
  std::vector<int64_t> row(int64_t index) const;

 private:
  int64_t sequence_length_;
  FimOptions fim_;
  int64_t vocab_size_ = 0, num_tokens_ = 0, num_bytes_ = 0, num_documents_ = 0;
  std::vector<std::filesystem::path> paths_;  // of shards
  std::vector<model::Safetensors> shards_;
  std::vector<int64_t> first_row_;  // of each shard, and the total
};

// Rows [begin, begin + count) of the order of training: a seeded permutation of all rows, another
// one each epoch. A function of its arguments alone.
std::vector<int64_t> rows_in_order(int64_t num_rows, int64_t begin, int64_t count, uint64_t seed);

// Rows as one batch. With document masking a row splits where a document begins (BOS), and no token
// predicts the beginning of the next document. A row longer than `longest_sequence` is cut into
// sequences of that length, which do not see each other either; 0: none is.
model::TrainingBatch make_batch(const TokenRows& rows, const std::vector<int64_t>& indices,
                                int64_t bos_token_id, bool document_masking,
                                int64_t longest_sequence = 0);

}  // namespace fathom::pretrain
