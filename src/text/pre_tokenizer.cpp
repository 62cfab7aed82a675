#include "text/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/check.h"
#include "text/utf8.h"

namespace fathom::text {

const std::vector<std::string> kDeepSeekSplits = {
    "\\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]"
    "+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
};

namespace {

std::string pcre2_message(int code) {
  char buffer[256];
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(buffer), sizeof buffer);
  return buffer;
}

std::shared_ptr<const pcre2_code> compile(const std::string& expression) {
  int error = 0;
  size_t offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                    PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
  if (code == nullptr) {
    fail("regular expression '{}': {} at byte {}", expression, pcre2_message(error), offset);
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return {code, [](const pcre2_code* p) { pcre2_code_free(const_cast<pcre2_code*>(p)); }};
}

}  // namespace

PreTokenizer::PreTokenizer(const std::vector<std::string>& expressions) {
  for (const std::string& expression : expressions) stages_.push_back(compile(expression));
}

PreTokenizer::Cursor::Cursor(const PreTokenizer& pre_tokenizer, std::string_view text)
    : pre_tokenizer_(pre_tokenizer), text_(text) {
  stages_.reserve(pre_tokenizer.stages_.size());
  for (const auto& code : pre_tokenizer.stages_) {
    pcre2_match_data* data = pcre2_match_data_create_from_pattern(code.get(), nullptr);
    stages_.push_back({{}, 0, {}, {data, pcre2_match_data_free}});
  }
}

bool PreTokenizer::Cursor::next(std::string_view* piece) {
  return next_of_stage(stages_.size(), piece);
}

// Stage 0 is the text itself; stage n cuts the pieces of stage n-1 with expression n-1.
bool PreTokenizer::Cursor::next_of_stage(size_t index, std::string_view* piece) {
  if (index == 0) {
    *piece = text_;
    text_ = {};
    return !piece->empty();
  }
  Stage& stage = stages_[index - 1];
  if (!stage.match.empty()) {
    *piece = stage.match;
    stage.match = {};
    return true;
  }
  if (stage.position == stage.piece.size()) {
    if (!next_of_stage(index - 1, &stage.piece)) return false;
    stage.position = 0;
  }
  const std::string_view match = find(stage, index - 1);
  const size_t match_begin = match.data() - stage.piece.data();
  const size_t gap = match_begin - stage.position;
  *piece = gap > 0 ? stage.piece.substr(stage.position, gap) : match;
  if (gap > 0) stage.match = match;
  stage.position = match_begin + match.size();
  return true;
}

std::string_view PreTokenizer::Cursor::find(const Stage& stage, size_t index) const {
  const pcre2_code* code = pre_tokenizer_.stages_[index].get();
  const auto subject = reinterpret_cast<PCRE2_SPTR>(stage.piece.data());
  const size_t size = stage.piece.size();
  size_t start = stage.position;
  while (start < size) {
    int found = pcre2_jit_match(code, subject, size, start, 0, stage.match_data.get(), nullptr);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT || found == PCRE2_ERROR_JIT_BADOPTION) {
      // Too deep for the JIT's stack, or no JIT for this machine: the interpreter finds the same.
      found = pcre2_match(code, subject, size, start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                          stage.match_data.get(), nullptr);
    }
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) fail("pre-tokenizer's expression {}: {}", index + 1, pcre2_message(found));
    const size_t* offsets = pcre2_get_ovector_pointer(stage.match_data.get());
    if (offsets[1] > offsets[0]) {
      return stage.piece.substr(offsets[0], offsets[1] - offsets[0]);
    }
    if (offsets[0] >= size) break;
    start = offsets[0] + next_utf8_sequence(stage.piece.substr(offsets[0])).length;
  }
  return stage.piece.substr(size);
}

}  // namespace fathom::text
