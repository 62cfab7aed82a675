// Corpora: text of packages, cleaned, deduplicated, in one order for everybody.
//
// On disk a corpus is a folder:
//   train-00000.jsonl, train-00001.jsonl, ...  one document a line:
//       {"source": "perl-doc", "path": "usr/share/perl/5.36.0/pod/perlre.pod", "text": "..."}
//   validation-00000.jsonl, ...                the same form, held out
//   manifest.json                              per source: package, version, licence, documents,
//                                              bytes; and the totals
// Text is valid UTF-8 in the normal form of corpus_text.h; no two documents are equal. Which split
// a document belongs to, and its place in the order, depend on a hash of its text alone, so the
// order is as good as shuffled, and the same packages always give the same bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "text/corpus_source.h"

namespace fathom::text {

struct Document {
  std::string source;  // name of the package
  std::string path;    // inside of it; articles of one file share it
  std::string text;
};

// The files of a split ("train" or "validation") in order. Throws Error if there are none.
std::vector<std::filesystem::path> corpus_files(const std::filesystem::path& folder,
                                                std::string_view split);

// Calls `read` with every document of the split in order. Throws Error naming file and line.
void read_documents(const std::filesystem::path& folder, std::string_view split,
                    const std::function<void(const Document&)>& read);

struct CorpusOptions {
  std::filesystem::path recipe;  // its key "corpus" lists the sources
  std::filesystem::path output;  // an earlier corpus there is replaced
  std::filesystem::path cache = "data/packages";
  int validation_share = 200;  // one document in so many is held out
  int64_t shard_bytes = 16 << 20;
};

// Throws Error on a bad recipe or a package that can't be had.
void build_corpus(const CorpusOptions& options);

// 64 bits of the text, the same on every machine: order, split and equality of documents.
uint64_t document_hash(std::string_view text);

}  // namespace fathom::text
