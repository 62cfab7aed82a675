// Writes what token_data.h reads: shards of one split, then the summary of all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"

namespace fathom::pretrain {

// Shards FOLDER/SPLIT-00000.safetensors and so on, U16 where the vocabulary allows, I32 otherwise.
class TokenWriter {
 public:
  TokenWriter(std::filesystem::path folder, std::string split, int64_t vocab_size,
              int64_t shard_tokens = 16 << 20);

  // A document with its BOS and EOS; shards end between documents.
  void add_document(std::span<const int32_t> ids);
  // Writes what is left. The split's entry of tokens.json; num_bytes is that of the documents'
  // text.
  Json finish(int64_t num_bytes);

 private:
  void flush();

  std::filesystem::path folder_;
  std::string split_;
  int64_t shard_tokens_;
  bool is_narrow_;
  std::vector<int32_t> tokens_;
  std::vector<std::string> files_;
  int64_t num_documents_ = 0, num_tokens_ = 0;
};

// tokens.json: its presence says that every shard is complete, so it is written last.
void write_token_summary(const std::filesystem::path& folder, const Json& summary);

}  // namespace fathom::pretrain
