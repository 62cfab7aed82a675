// Cuts text into the pieces that BPE never merges across: a chain of regular expressions, each
// cutting the pieces of the one before into its matches and what lies between them ("Isolated").
// A stage sees one piece at a time, so a lookahead never looks beyond the end of its piece.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;

namespace fathom::text {

// The three expressions of DeepSeek-V3 (tokenizer.json, "pre_tokenizer"): runs of one to three
// digits; Chinese and Japanese; words, punctuation and white space.
extern const std::vector<std::string> kDeepSeekSplits;

class PreTokenizer {
 public:
  // Oniguruma's syntax as far as it agrees with PCRE2's, Unicode classes on. Throws Error naming
  // the expression and the place.
  explicit PreTokenizer(const std::vector<std::string>& expressions);

  // Where one thread is in a text: cheap to make, not to be shared between threads.
  class Cursor {
   public:
    // `text` must be valid UTF-8 and outlive the cursor.
    Cursor(const PreTokenizer& pre_tokenizer, std::string_view text);

    // The next piece, never empty; false at the end.
    bool next(std::string_view* piece);

   private:
    struct Stage {
      std::string_view piece;  // of the stage before
      size_t position = 0;     // what lies before it is cut
      std::string_view match;  // found behind an unmatched stretch, to be given next
      std::unique_ptr<pcre2_real_match_data_8, void (*)(pcre2_real_match_data_8*)> match_data;
    };
    bool next_of_stage(size_t index, std::string_view* piece);
    // The stage's next match that is not empty; an empty view at the piece's end if none.
    std::string_view find(const Stage& stage, size_t index) const;

    const PreTokenizer& pre_tokenizer_;
    std::string_view text_;
    std::vector<Stage> stages_;
  };

 private:
  std::vector<std::shared_ptr<const pcre2_real_code_8>> stages_;
};

}  // namespace fathom::text
