#include "text/bpe_trainer.h"

#include <algorithm>
#include <array>
#include <queue>

#include "base/check.h"
#include "base/file.h"
#include "base/progress.h"
#include "text/byte_level.h"
#include "text/corpus.h"
#include "text/utf8.h"

namespace fathom::text {

namespace {

constexpr const char* kFirstTokens[] = {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
                                        "<｜▁pad▁｜>"};
constexpr const char* kLastTokens[] = {"<｜User｜>",    "<｜Assistant｜>", "<think>",
                                       "</think>",      "<｜fim▁hole｜>",  "<｜fim▁begin｜>",
                                       "<｜fim▁end｜>", "｜DSML｜"};
constexpr int kNumFirst = std::size(kFirstTokens);
constexpr int kNumLast = std::size(kLastTokens);
constexpr int kNumBytes = 256;

// Every different piece of the text once, as the ids it is made of so far.
class Pieces {
 public:
  using Pair = std::pair<TokenId, TokenId>;
  struct Candidate {
    int64_t count;
    Pair pair;
    bool operator<(const Candidate& other) const {  // the heap gives its largest first
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };

  void add(std::vector<TokenId> ids, int64_t count) {
    const auto piece = static_cast<int32_t>(pieces_.size());
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      PairUse& use = uses_[key({ids[i], ids[i + 1]})];
      use.count += count;
      if (use.pieces.empty() || use.pieces.back() != piece) use.pieces.push_back(piece);
    }
    pieces_.push_back({std::move(ids), count});
  }

  void make_heap() {
    for (const auto& [pair, use] : uses_) {
      heap_.push({use.count, {static_cast<TokenId>(pair >> 32), static_cast<TokenId>(pair)}});
    }
  }

  // The most frequent pair, taken off; a count of 0 if none is left.
  Candidate pop() {
    while (!heap_.empty()) {
      const Candidate candidate = heap_.top();
      heap_.pop();
      const int64_t count = uses_.at(key(candidate.pair)).count;
      if (count == candidate.count) return candidate;
      // Counts that fell since the pair was pushed are corrected only here.
      if (count > 0) heap_.push({count, candidate.pair});
    }
    return {0, {}};
  }

  void merge(Pair pair, TokenId merged) {
    const std::vector<int32_t> pieces = std::move(uses_.at(key(pair)).pieces);
    std::vector<Pair> grown;
    for (const int32_t piece : pieces) merge_in(piece, pair, merged, &grown);
    std::sort(grown.begin(), grown.end());
    grown.erase(std::unique(grown.begin(), grown.end()), grown.end());
    for (const Pair& p : grown) heap_.push({uses_.at(key(p)).count, p});
  }

 private:
  struct Piece {
    std::vector<TokenId> ids;
    int64_t count;
  };
  struct PairUse {
    int64_t count = 0;
    std::vector<int32_t> pieces;  // all that have the pair, and some that had it
  };

  static uint64_t key(Pair pair) {
    return static_cast<uint64_t>(pair.first) << 32 | static_cast<uint32_t>(pair.second);
  }

  void merge_in(int32_t piece, Pair pair, TokenId merged, std::vector<Pair>* grown) {
    std::vector<TokenId>& ids = pieces_[piece].ids;
    const int64_t count = pieces_[piece].count;
    const auto has_pair = [&](size_t i) {
      return i + 1 < ids.size() && ids[i] == pair.first && ids[i + 1] == pair.second;
    };
    size_t first = 0;
    while (first < ids.size() && !has_pair(first)) ++first;
    if (first == ids.size()) return;
    for (size_t i = 0; i + 1 < ids.size(); ++i) uses_[key({ids[i], ids[i + 1]})].count -= count;
    size_t out = first;
    for (size_t i = first; i < ids.size(); ++i) {
      const bool is_merged = has_pair(i);
      const TokenId id = is_merged ? merged : ids[i];
      if (is_merged) ++i;
      ids[out++] = id;
    }
    ids.resize(out);
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      PairUse& use = uses_[key({ids[i], ids[i + 1]})];
      use.count += count;
      if (ids[i] != merged && ids[i + 1] != merged) continue;
      if (use.pieces.empty() || use.pieces.back() != piece) use.pieces.push_back(piece);
      grown->push_back({ids[i], ids[i + 1]});
    }
  }

  std::vector<Piece> pieces_;
  std::unordered_map<uint64_t, PairUse> uses_;
  std::priority_queue<Candidate> heap_;
};

// BOS, EOS and padding, the bytes by the order of their characters in the byte-level alphabet.
TokenizerParts first_parts(int vocab_size) {
  TokenizerParts parts;
  parts.splits = kDeepSeekSplits;
  parts.tokens.resize(kNumFirst);
  for (int i = 0; i < kNumFirst; ++i) parts.added_tokens.push_back({kFirstTokens[i], i, true});
  for (int i = 0; i < kNumLast; ++i) {
    parts.added_tokens.push_back({kLastTokens[i], vocab_size - kNumLast + i, false});
  }
  std::vector<std::string> bytes;
  for (int byte = 0; byte < kNumBytes; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
  std::sort(bytes.begin(), bytes.end(), [](const std::string& a, const std::string& b) {
    return to_byte_level(a) < to_byte_level(b);
  });
  parts.tokens.insert(parts.tokens.end(), bytes.begin(), bytes.end());
  return parts;
}

void add_file(const std::filesystem::path& input, BpeTrainer* trainer) {
  base::Progress progress("read " + input.string(), 0, "MB");
  if (!std::filesystem::is_directory(input)) return trainer->add(base::read_file(input));
  read_documents(input, "train", [&](const Document& document) {
    trainer->add(document.text);
    progress.update(static_cast<double>(trainer->num_bytes()) / 1e6);
  });
  progress.finish();
}

Json tokenizer_config() {
  return {{"tokenizer_class", "PreTrainedTokenizerFast"},
          {"bos_token", kFirstTokens[0]},
          {"eos_token", kFirstTokens[1]},
          {"pad_token", kFirstTokens[2]},
          {"unk_token", nullptr},
          {"add_bos_token", true},
          {"add_eos_token", false},
          {"clean_up_tokenization_spaces", false}};
}

}  // namespace

int smallest_vocab_size() { return kNumFirst + kNumBytes + kNumLast; }

BpeTrainer::BpeTrainer(const BpeTrainerOptions& options)
    : options_(options), pre_tokenizer_(kDeepSeekSplits) {
  if (options.vocab_size < smallest_vocab_size()) {
    fail("vocabulary of {} tokens: the bytes and special tokens alone are {}", options.vocab_size,
         smallest_vocab_size());
  }
}

void BpeTrainer::add(std::string_view text) {
  std::string clean;
  if (!is_valid_utf8(text)) {
    clean = replace_invalid_utf8(text);
    text = clean;
  }
  num_bytes_ += text.size();
  PreTokenizer::Cursor cursor(pre_tokenizer_, text);
  for (std::string_view piece; cursor.next(&piece);) {
    const auto known = piece_counts_.find(piece);
    if (known != piece_counts_.end()) {
      ++known->second;
    } else {
      piece_counts_.emplace(piece, 1);
    }
  }
}

TokenizerParts BpeTrainer::train() const {
  TokenizerParts parts = first_parts(options_.vocab_size);
  std::array<TokenId, kNumBytes> byte_ids;
  for (int i = 0; i < kNumBytes; ++i) {
    byte_ids[static_cast<uint8_t>(parts.tokens[kNumFirst + i][0])] = kNumFirst + i;
  }
  Pieces pieces;
  for (const auto& [piece, count] : piece_counts_) {
    std::vector<TokenId> ids;
    for (const char c : piece) ids.push_back(byte_ids[static_cast<uint8_t>(c)]);
    pieces.add(std::move(ids), count);
  }
  pieces.make_heap();
  const int num_merged = options_.vocab_size - kNumLast;
  base::Progress progress("merge", num_merged, "tokens");
  while (static_cast<int>(parts.tokens.size()) < num_merged) {
    const auto [count, pair] = pieces.pop();
    if (count == 0) {
      fail("{} bytes of text give only {} of {} tokens: more text or a smaller vocabulary",
           num_bytes_, parts.tokens.size() + kNumLast, options_.vocab_size);
    }
    const std::string bytes = parts.tokens[pair.first] + parts.tokens[pair.second];
    if (static_cast<int>(bytes.size()) > options_.max_token_bytes) continue;
    const auto id = static_cast<TokenId>(parts.tokens.size());
    parts.tokens.push_back(bytes);
    parts.merges.push_back({pair.first, pair.second, id});
    pieces.merge(pair, id);
    progress.update(id);
  }
  progress.finish();
  return parts;
}

void train_tokenizer(const TrainTokenizerOptions& options) {
  BpeTrainer trainer(options.bpe);
  for (const auto& input : options.inputs) add_file(input, &trainer);
  TokenizerParts parts = trainer.train();
  // Special tokens stand in the vocabulary too, as in DeepSeek's file.
  parts.tokens.resize(options.bpe.vocab_size);
  std::filesystem::create_directories(options.output);
  base::write_file_atomically(options.output / "tokenizer.json",
                              write_tokenizer_json(parts) + "\n");
  base::write_file_atomically(options.output / "tokenizer_config.json",
                              tokenizer_config().dump(2) + "\n");
}

}  // namespace fathom::text
