// Fill-in-the-middle (report of V3, section 4.1): a share of the documents is reordered as prefix,
// suffix, middle, so that the model learns to write what stands between two texts:
//   BOS <｜fim▁begin｜> prefix <｜fim▁hole｜> suffix <｜fim▁end｜> middle EOS
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace fathom::pretrain {

struct FimTokens {
  int64_t begin = 0, hole = 0, end = 0;
};

// Throws Error naming the token that the tokenizer of `folder` lacks.
FimTokens read_fim_tokens(const std::filesystem::path& folder);

struct FimOptions {
  double rate = 0;  // share of the documents that begin in a row
  uint64_t seed = 0;
  int64_t bos_token_id = 0, eos_token_id = 0;
  FimTokens tokens = {};
};

// The row with some of its documents reordered; as long as before. Documents whose beginning the
// row does not hold stay as they are, and so do those of fewer than three tokens. Three tokens a
// document are added: what they push beyond the row's end is cut off the last document, before it
// is reordered. A function of its arguments alone; the choice of (seed, row_index).
std::vector<int64_t> with_fill_in_the_middle(const std::vector<int64_t>& row, int64_t row_index,
                                             const FimOptions& options);

}  // namespace fathom::pretrain
