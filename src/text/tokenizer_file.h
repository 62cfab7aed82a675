// Reading and writing Hugging Face's tokenizer.json, as far as tokenizer.h says it is supported.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"

namespace fathom::text {

struct TokenizerParts {
  std::vector<std::string> splits;  // regular expressions of the pre-tokenizer
  std::vector<std::string> tokens;  // bytes by id; empty: a hole, or one of added_tokens
  std::vector<BpeMerge> merges;     // by rank
  std::vector<AddedToken> added_tokens;
};

// Throws Error "SOURCE: FIELD: what was expected, what was found".
TokenizerParts read_tokenizer_parts(std::string_view tokenizer_json, std::string_view source);

std::string write_tokenizer_json(const TokenizerParts& parts);

}  // namespace fathom::text
