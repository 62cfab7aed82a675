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

// Throws Error where the tokens of `folder` were not made for this model: another vocabulary or
// BOS.
void check_tokens_fit(const std::filesystem::path& folder, const model::Config& config);

// One split's shards, mapped. A row is sequence_length + 1 consecutive tokens of a shard.
class TokenRows {
 public:
  TokenRows(const std::filesystem::path& folder, const std::string& split, int64_t sequence_length);

  int64_t num_rows() const { return first_row_.back(); }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_bytes() const { return num_bytes_; }  // of the documents' text
  // Tokens that are predicted, for each byte of text: all but BOS.
  double targets_per_byte() const;
  // The row's sequence_length + 1 tokens.
  std::vector<int64_t> row(int64_t index) const;

 private:
  int64_t sequence_length_;
  int64_t num_tokens_ = 0, num_bytes_ = 0, num_documents_ = 0;
  std::vector<model::Safetensors> shards_;
  std::vector<int64_t> first_row_;  // of each shard, and the total
};

// The rows of a step: a seeded permutation of all rows, another one each epoch. A function of
// (seed, step) alone.
std::vector<int64_t> rows_of_step(int64_t num_rows, int64_t batch_rows, uint64_t seed,
                                  int64_t step);

// Rows as one batch. With document masking a row splits where a document begins (BOS), and no token
// predicts the beginning of the next document.
model::TrainingBatch make_batch(const TokenRows& rows, const std::vector<int64_t>& indices,
                                int64_t bos_token_id, bool document_masking);

}  // namespace fathom::pretrain
