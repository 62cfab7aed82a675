#include "pretrain/fill_in_the_middle.h"

#include <algorithm>
#include <span>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "base/random.h"
#include "text/tokenizer.h"

namespace fathom::pretrain {
namespace {

constexpr int64_t kFewestTokens = 3;  // a prefix, a middle and a suffix
// Beyond the streams that order the rows, one an epoch.
constexpr uint64_t kFirstStream = uint64_t{1} << 32;

// [BOS] content [EOS] -> [BOS] begin prefix hole suffix end middle [EOS]; appended to `out`.
void append_reordered(std::span<const int64_t> document, const FimOptions& options,
                      base::Random& random, std::vector<int64_t>& out) {
  const bool has_end = document.back() == options.eos_token_id;
  const auto content = document.subspan(1, document.size() - 1 - (has_end ? 1 : 0));
  auto first = random.below(content.size() + 1), second = random.below(content.size() + 1);
  if (first > second) std::swap(first, second);
  const auto append = [&](int64_t mark, std::span<const int64_t> part) {
    out.push_back(mark);
    out.insert(out.end(), part.begin(), part.end());
  };
  out.push_back(document.front());
  append(options.tokens.begin, content.first(first));
  append(options.tokens.hole, content.subspan(second));
  append(options.tokens.end, content.subspan(first, second - first));
  if (has_end) out.push_back(options.eos_token_id);
}

}  // namespace

FimTokens read_fim_tokens(const std::filesystem::path& folder) {
  const auto path = folder / "tokenizer.json";
  const auto tokenizer = text::Tokenizer::load(path);
  const auto id_of = [&](std::string_view token) -> int64_t {
    const auto id = tokenizer.find(token);
    if (!id)
      fail(
          "{}: has no token {}, which \"training.fim_rate\" needs; set it to 0, or learn "
          "the tokenizer anew with fathom train-tokenizer",
          path.string(), token);
    return *id;
  };
  return {id_of("<｜fim▁begin｜>"), id_of("<｜fim▁hole｜>"), id_of("<｜fim▁end｜>")};
}

std::vector<int64_t> with_fill_in_the_middle(const std::vector<int64_t>& row, int64_t row_index,
                                             const FimOptions& options) {
  if (options.rate <= 0) return row;
  base::Random random(options.seed, kFirstStream + static_cast<uint64_t>(row_index));
  std::vector<int64_t> out;
  out.reserve(row.size() + 3);
  for (auto begin = row.begin(); begin != row.end() && out.size() < row.size();) {
    const auto end = std::find(begin + 1, row.end(), options.bos_token_id);
    const bool is_chosen = *begin == options.bos_token_id && random.uniform() < options.rate;
    const auto room = static_cast<int64_t>(row.size() - out.size());
    const auto count = std::min<int64_t>(end - begin, is_chosen ? room - 3 : room);
    const std::span document(begin, begin + std::max<int64_t>(count, 0));
    if (is_chosen && count >= kFewestTokens + 2)
      append_reordered(document, options, random, out);
    else
      out.insert(out.end(), begin, begin + std::min<int64_t>(end - begin, room));
    begin = end;
  }
  CHECK_EQ(out.size(), row.size());
  return out;
}

}  // namespace fathom::pretrain
