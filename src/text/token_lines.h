// Tokenizing JSON lines: a JSON string a line to a JSON list of ids a line, and back.
#pragma once

#include <filesystem>
#include <istream>
#include <ostream>

#include "text/tokenizer.h"

namespace fathom::text {

// A bad line throws Error with its number; the lines before it are already written. Decoded bytes
// that are no valid UTF-8 become U+FFFD: JSON can't hold them.
void encode_lines(const Tokenizer& tokenizer, std::istream& input, std::ostream& output);
void decode_lines(const Tokenizer& tokenizer, std::istream& input, std::ostream& output);

struct TokenizeOptions {
  std::filesystem::path model;  // folder with tokenizer.json
  bool decode = false;
};

void tokenize_lines(const TokenizeOptions& options, std::istream& input, std::ostream& output);

}  // namespace fathom::text
