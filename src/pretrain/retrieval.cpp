#include "pretrain/retrieval.h"

#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "base/random.h"
#include "pretrain/token_data.h"
#include "pretrain/token_writer.h"

namespace fathom::pretrain {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kEntry = 3;                     // tokens of a pair and of a query
constexpr int64_t kFirstOrdinary = 3;             // BOS, EOS and padding come first,
constexpr int64_t kLastSpecial = 8;               // the other special tokens last
constexpr uint64_t kHeldOut = uint64_t{1} << 32;  // numbers of held-out documents begin here

// `count` different numbers below `bound`, in random order.
std::vector<int64_t> draw_distinct(int64_t count, int64_t bound, base::Random& random) {
  CHECK_LE(count, bound);
  std::vector<int64_t> numbers(bound);
  std::iota(numbers.begin(), numbers.end(), 0);
  for (int64_t i = 0; i < count; ++i)
    std::swap(numbers[i], numbers[i + random.below(static_cast<uint64_t>(bound - i))]);
  numbers.resize(count);
  return numbers;
}

void write_entry(int64_t marker, int32_t key, int32_t value, int32_t* at) {
  at[0] = static_cast<int32_t>(marker);
  at[1] = key;
  at[2] = value;
}

std::string mixture_fingerprint(const Recipe& recipe, const Json& text) {
  return fmt::format("{}; retrieval {}, seed {}", text.value("origin", Json()).dump(),
                     recipe.source.value("retrieval", Json::object()).dump(), recipe.training.seed);
}

// The text's shards, by their names seen from the mixture's folder.
std::vector<std::string> files_from_beside(const Json& split, const fs::path& tokens) {
  std::vector<std::string> files;
  for (const auto& file : split.at("files"))
    files.push_back((fs::path("..") / tokens.filename() / file.get<std::string>()).string());
  return files;
}

Json with_counts_of(Json more, const Json& text, std::vector<std::string> files) {
  for (const auto& file : more["files"]) files.push_back(file);
  more["files"] = files;
  for (const char* key : {"num_documents", "num_tokens", "num_bytes"})
    more[key] = more[key].get<int64_t>() + text.at(key).get<int64_t>();
  return more;
}

}  // namespace

RetrievalDocument make_retrieval_document(const RetrievalRecipe& recipe,
                                          const model::Config& config,
                                          std::span<const int64_t> text, uint64_t seed,
                                          uint64_t number) {
  const int64_t length = std::ssize(text), pairs_end = length - kEntry * recipe.num_queries;
  if (pairs_end <= kEntry)
    fail("\"retrieval.num_queries\" is {}; a row of {} tokens holds at most {}", recipe.num_queries,
         length, (length - kEntry - 1) / kEntry);
  const int64_t stretch = (pairs_end - 1) / recipe.num_pairs;
  if (stretch < kEntry)
    fail("\"retrieval.num_pairs\" is {}; a row of {} tokens with {} queries holds at most {}",
         recipe.num_pairs, length, recipe.num_queries, (pairs_end - 1) / kEntry);
  base::Random random(seed, number);
  const int64_t half = (config.vocab_size - kLastSpecial - kFirstOrdinary) / 2;
  const auto keys = draw_distinct(recipe.num_pairs, half, random);
  RetrievalDocument document;
  document.tokens.assign(text.begin(), text.end());
  // A document has one beginning.
  std::replace(document.tokens.begin(), document.tokens.end(),
               static_cast<int32_t>(config.bos_token_id),
               static_cast<int32_t>(config.eos_token_id));
  document.tokens[0] = static_cast<int32_t>(config.bos_token_id);
  std::vector<int64_t> place_of_pair;
  std::vector<int32_t> value_of_pair;
  for (int64_t i = 0; i < recipe.num_pairs; ++i) {
    place_of_pair.push_back(1 + i * stretch +
                            static_cast<int64_t>(random.below(stretch - kEntry + 1)));
    value_of_pair.push_back(static_cast<int32_t>(
        kFirstOrdinary + half + static_cast<int64_t>(random.below(static_cast<uint64_t>(half)))));
    write_entry(recipe.pair_token, static_cast<int32_t>(kFirstOrdinary + keys[i]), value_of_pair[i],
                document.tokens.data() + place_of_pair[i]);
  }
  int64_t at = pairs_end;
  for (int64_t pair : draw_distinct(recipe.num_queries, recipe.num_pairs, random)) {
    write_entry(recipe.query_token, static_cast<int32_t>(kFirstOrdinary + keys[pair]),
                value_of_pair[pair], document.tokens.data() + at);
    document.queries.push_back({at + 1, at + 1 - (place_of_pair[pair] + 2), value_of_pair[pair]});
    at += kEntry;
  }
  return document;
}

fs::path mix_with_retrieval(const Recipe& recipe, const fs::path& tokens) {
  const int64_t length = recipe.training.sequence_length;
  const fs::path folder =
      tokens.parent_path() /
      fmt::format("{}-retrieval-{}-{}", tokens.filename().string(), length, recipe.training.seed);
  const Json text = base::read_json_file(tokens / "tokens.json");
  const std::string print = mixture_fingerprint(recipe, text);
  if (fs::exists(folder / "tokens.json") &&
      base::read_json_file(folder / "tokens.json").value("fingerprint", "") == print)
    return folder;
  const TokenRows rows(tokens, "train", length);
  const double share = recipe.retrieval.share;
  const auto count = static_cast<int64_t>(
      std::llround(static_cast<double>(rows.num_rows()) * share / (1 - share)));
  // One shard: a row is a document, and ends with the next one's BOS.
  TokenWriter writer(folder, "retrieval", recipe.model.vocab_size, INT64_MAX);
  for (int64_t i = 0; i < count; ++i) {
    std::vector<int64_t> row = rows.row(i % rows.num_rows());
    row.pop_back();
    writer.add_document(make_retrieval_document(recipe.retrieval, recipe.model, row,
                                                recipe.training.seed, static_cast<uint64_t>(i))
                            .tokens);
  }
  writer.add_document(std::vector<int32_t>{static_cast<int32_t>(recipe.model.bos_token_id)});
  Json summary = {{"fingerprint", print},
                  {"vocab_size", text.at("vocab_size")},
                  {"bos_token_id", text.at("bos_token_id")},
                  {"train", with_counts_of(writer.finish(0), text.at("train"),
                                           files_from_beside(text.at("train"), tokens))},
                  {"validation", text.at("validation")}};
  summary["validation"]["files"] = files_from_beside(text.at("validation"), tokens);
  write_token_summary(folder, summary);
  return folder;
}

std::vector<RetrievalDocument> held_out_documents(const Recipe& recipe, const fs::path& tokens) {
  const TokenRows rows(tokens, "validation", recipe.training.sequence_length);
  std::vector<RetrievalDocument> documents;
  for (int64_t i = 0; i < recipe.retrieval.validation_rows; ++i) {
    std::vector<int64_t> row = rows.row(i % rows.num_rows());
    row.pop_back();
    documents.push_back(make_retrieval_document(recipe.retrieval, recipe.model, row,
                                                recipe.training.seed,
                                                kHeldOut + static_cast<uint64_t>(i)));
  }
  return documents;
}

RetrievalAccuracy measure_retrieval(const model::Model& model,
                                    const std::vector<RetrievalDocument>& documents,
                                    const model::ForwardOptions& options) {
  const torch::NoGradGuard no_grad;
  RetrievalAccuracy result;
  for (const RetrievalDocument& document : documents) {
    const std::vector<int64_t> ids(document.tokens.begin(), document.tokens.end());
    const auto count = std::ssize(ids);
    const model::Segment segment{count, 0, nullptr};
    const auto hidden =
        model::forward(model, torch::tensor(ids, torch::kLong), {&segment, 1}, options);
    std::vector<int64_t> positions;
    for (const RetrievalQuery& query : document.queries) positions.push_back(query.position);
    const auto best =
        model::logits(model, hidden.index_select(0, torch::tensor(positions)), options).argmax(1);
    for (size_t i = 0; i < document.queries.size(); ++i) {
      const RetrievalQuery& query = document.queries[i];
      const bool is_beyond = query.distance >= model.config.index_topk;
      ++(is_beyond ? result.num_beyond : result.num_within);
      if (best[static_cast<int64_t>(i)].item<int64_t>() == query.value)
        ++(is_beyond ? result.beyond : result.within);
    }
  }
  if (result.num_beyond > 0) result.beyond /= static_cast<double>(result.num_beyond);
  if (result.num_within > 0) result.within /= static_cast<double>(result.num_within);
  return result;
}

}  // namespace fathom::pretrain
