#include "pretrain/token_data.h"

#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/parallel.h"
#include "base/progress.h"
#include "base/random.h"
#include "pretrain/token_writer.h"
#include "text/corpus.h"

namespace fathom::pretrain {
namespace {

constexpr int64_t kDocumentsAtOnce = 512;
constexpr std::string_view kBos = "<｜begin▁of▁sentence｜>";
constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";

// Of all its text: who edits a shard leaves the manifest as it is.
std::string hash_of_corpus(const std::filesystem::path& folder) {
  std::string hashes;
  for (const char* split : {"train", "validation"})
    for (const auto& path : text::corpus_files(folder, split))
      hashes += hash_of_file(path) + path.filename().string() + "\n";
  return fmt::format("{:016x}", text::document_hash(hashes));
}

text::TokenId special_token(const text::Tokenizer& tokenizer, const TokenizeOptions& options,
                            std::string_view token) {
  const auto id = tokenizer.find(token);
  if (!id) fail("{}: the tokenizer has no token {}", options.tokenizer.string(), token);
  return *id;
}

Json tokenize_split(const TokenizeOptions& options, const text::Tokenizer& tokenizer,
                    const std::string& split) {
  const text::TokenId bos = special_token(tokenizer, options, kBos);
  const text::TokenId eos = special_token(tokenizer, options, kEos);
  TokenWriter writer(options.output, split, tokenizer.vocab_size(), options.shard_tokens);
  base::Progress progress("tokenize " + split, 0, "MB");
  int64_t num_bytes = 0;
  std::vector<std::string> texts;
  const auto encode_texts = [&] {
    std::vector<std::vector<text::TokenId>> ids(texts.size());
    base::parallel_for(static_cast<int64_t>(texts.size()), 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ids[i] = tokenizer.encode(texts[i]);
    });
    for (auto& document : ids) {
      document.insert(document.begin(), bos);
      document.push_back(eos);
      writer.add_document(document);
    }
    texts.clear();
    progress.update(static_cast<double>(num_bytes) / 1e6);
  };
  text::read_documents(options.corpus, split, [&](const text::Document& document) {
    num_bytes += static_cast<int64_t>(document.text.size());
    texts.push_back(document.text);
    if (static_cast<int64_t>(texts.size()) == kDocumentsAtOnce) encode_texts();
  });
  encode_texts();
  return writer.finish(num_bytes);
}

}  // namespace

void tokenize_corpus(const TokenizeOptions& options) {
  const auto summary_path = options.output / "tokens.json";
  const Json origin = {{"corpus", hash_of_corpus(options.corpus)},
                       {"tokenizer", hash_of_file(options.tokenizer / "tokenizer.json")},
                       {"shard_tokens", options.shard_tokens}};
  if (std::filesystem::exists(summary_path) &&
      base::read_json_file(summary_path).value("origin", Json()) == origin)
    return;
  std::filesystem::remove_all(options.output);
  std::filesystem::create_directories(options.output);
  const auto tokenizer = text::Tokenizer::load(options.tokenizer / "tokenizer.json");
  Json summary = {{"origin", origin},
                  {"vocab_size", tokenizer.vocab_size()},
                  {"bos_token_id", special_token(tokenizer, options, kBos)}};
  for (const std::string split : {"train", "validation"})
    summary[split] = tokenize_split(options, tokenizer, split);
  write_token_summary(options.output, summary);
}

TokenOrigin token_origin(const std::filesystem::path& folder) {
  const Json origin = base::read_json_file(folder / "tokens.json").value("origin", Json::object());
  return {origin.value("corpus", ""), origin.value("tokenizer", "")};
}

std::string hash_of_file(const std::filesystem::path& path) {
  return fmt::format("{:016x}", text::document_hash(base::read_file(path)));
}

void check_tokens_fit(const std::filesystem::path& folder, const model::Config& config) {
  const auto path = folder / "tokens.json";
  const Json summary = base::read_json_file(path);
  const int64_t vocab_size = summary.value("vocab_size", int64_t{0});
  if (vocab_size < 1 || vocab_size > config.vocab_size)
    fail("{}: tokens of a vocabulary of {}; the model's vocab_size is {}", path.string(),
         vocab_size, config.vocab_size);
  const int64_t bos = summary.value("bos_token_id", int64_t{-1});
  if (bos != config.bos_token_id)
    fail("{}: documents begin with token {}; the model's bos_token_id is {}", path.string(), bos,
         config.bos_token_id);
}

double TokenRows::targets_per_byte() const {
  return static_cast<double>(num_tokens_ - num_documents_) / static_cast<double>(num_bytes_);
}

TokenRows::TokenRows(const std::filesystem::path& folder, const std::string& split,
                     int64_t sequence_length, FimOptions fim)
    : sequence_length_(sequence_length), fim_(std::move(fim)), first_row_{0} {
  const Json all = base::read_json_file(folder / "tokens.json");
  const Json& summary = all.at(split);
  vocab_size_ = all.at("vocab_size");
  num_tokens_ = summary.at("num_tokens");
  num_bytes_ = summary.at("num_bytes");
  num_documents_ = summary.at("num_documents");
  for (const auto& file : summary.at("files")) {
    paths_.push_back(folder / file.get<std::string>());
    shards_.push_back(model::Safetensors::open(paths_.back()));
    const int64_t tokens = shards_.back().at("tokens").num_elements();
    first_row_.push_back(first_row_.back() + std::max<int64_t>(0, (tokens - 1) / sequence_length));
  }
  if (num_rows() == 0)
    fail("{}: the {} split has {} tokens; expected more than training.sequence_length = {}",
         folder.string(), split, num_tokens_, sequence_length);
}

std::vector<int64_t> TokenRows::row(int64_t index) const {
  CHECK(0 <= index && index < num_rows(), "row {} of {}", index, num_rows());
  size_t shard = 0;
  while (index >= first_row_[shard + 1]) ++shard;
  const model::TensorView& view = shards_[shard].at("tokens");
  const int64_t begin = (index - first_row_[shard]) * sequence_length_;
  std::vector<int64_t> tokens(sequence_length_ + 1);
  for (int64_t i = 0; i <= sequence_length_; ++i) {
    if (view.dtype == model::DType::kU16)
      tokens[i] = reinterpret_cast<const uint16_t*>(view.data)[begin + i];
    else
      tokens[i] = reinterpret_cast<const int32_t*>(view.data)[begin + i];
    if (tokens[i] < 0 || tokens[i] >= vocab_size_)
      fail(
          "{}: token {} is {}; expected below {}; the file is damaged, delete its folder and the "
          "text is cut again",
          paths_[shard].string(), begin + i, tokens[i], vocab_size_);
  }
  return with_fill_in_the_middle(tokens, index, fim_);
}

std::vector<int64_t> rows_in_order(int64_t num_rows, int64_t begin, int64_t count, uint64_t seed) {
  std::vector<int64_t> result, order;
  int64_t epoch_of_order = -1;
  for (int64_t i = begin; i < begin + count; ++i) {
    const int64_t epoch = i / num_rows;
    if (epoch != epoch_of_order) {
      order.resize(num_rows);
      std::iota(order.begin(), order.end(), 0);
      base::Random random(seed, static_cast<uint64_t>(epoch));
      for (int64_t j = num_rows - 1; j > 0; --j)
        std::swap(order[j], order[random.below(static_cast<uint64_t>(j) + 1)]);
      epoch_of_order = epoch;
    }
    result.push_back(order[i % num_rows]);
  }
  return result;
}

model::TrainingBatch make_batch(const TokenRows& rows, const std::vector<int64_t>& indices,
                                int64_t bos_token_id, bool document_masking,
                                int64_t longest_sequence) {
  std::vector<int64_t> tokens, targets, lengths, sequence_lengths;
  for (int64_t index : indices) {
    const auto row = rows.row(index);
    const int64_t longest = longest_sequence > 0 ? longest_sequence : std::ssize(row);
    for (int64_t i = 0; i + 1 < std::ssize(row); ++i) {
      const bool begins_document = document_masking && row[i] == bos_token_id;
      if (i % longest == 0) sequence_lengths.push_back(0);
      if (i % longest == 0 || begins_document) lengths.push_back(0);
      ++sequence_lengths.back();
      ++lengths.back();
      tokens.push_back(row[i]);
      targets.push_back(document_masking && row[i + 1] == bos_token_id ? -1 : row[i + 1]);
    }
  }
  const auto count = static_cast<int64_t>(tokens.size());
  const auto tensor = [&](std::vector<int64_t>& values) {
    return torch::from_blob(values.data(), {count}, torch::kLong).clone();
  };
  return {tensor(tokens), tensor(targets), lengths, sequence_lengths};
}

}  // namespace fathom::pretrain
