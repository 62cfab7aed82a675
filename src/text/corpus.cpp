#include "text/corpus.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <unordered_set>

#include "base/check.h"
#include "base/file.h"
#include "base/json_lines.h"
#include "base/progress.h"
#include "text/corpus_text.h"

namespace fathom::text {

namespace {

namespace fs = std::filesystem;

constexpr double kBytesPerMegabyte = 1e6;

struct HashedDocument {
  uint64_t hash;
  Document document;
};

// Errors name the file and the line.
std::vector<CorpusSource> read_recipe(const fs::path& path) {
  const Json recipe = base::read_json_file(path);
  const auto lines = base::json_lines(base::read_file(path));
  if (!recipe.is_object() || !recipe.contains("corpus")) {
    fail("{}: 'corpus' is missing; expected a list of sources to gather text from", path.string());
  }
  auto sources = parse_corpus(recipe.at("corpus"), [&](const std::string& key) {
    return fmt::format("{}:{}", path.string(), lines.at(key));
  });
  if (sources.empty()) fail("{}:{}: 'corpus' is empty", path.string(), lines.at("corpus"));
  return sources;
}

// Documents of one source in the order of their hashes, up to the source's limit.
std::vector<HashedDocument> read_source(const CorpusSource& source, const fs::path& folder,
                                        std::unordered_set<uint64_t>* seen) {
  std::vector<HashedDocument> documents;
  for (const fs::path& path : select_files(source, folder)) {
    const std::string bytes = base::read_file(folder / path);
    for (std::string& text : extract_documents(source.kind, bytes, (folder / path).string())) {
      const uint64_t hash = document_hash(text);
      if (!seen->insert(hash).second) continue;
      documents.push_back({hash, {source.package, path.string(), std::move(text)}});
    }
  }
  std::sort(documents.begin(), documents.end(),
            [](const auto& a, const auto& b) { return a.hash < b.hash; });
  if (source.max_megabytes > 0) {
    double num_bytes = 0;
    size_t count = 0;
    while (count < documents.size() && num_bytes < source.max_megabytes * kBytesPerMegabyte) {
      num_bytes += static_cast<double>(documents[count++].document.text.size());
    }
    documents.resize(count);
  }
  return documents;
}

Json describe_source(const CorpusSource& source, const std::string& version,
                     const std::vector<HashedDocument>& documents) {
  int64_t num_bytes = 0;
  for (const HashedDocument& document : documents) num_bytes += document.document.text.size();
  return {{"package", source.package}, {"registry", source.is_npm ? "npm" : "debian"},
          {"version", version},        {"licence", source.licence},
          {"kind", source.kind},       {"num_documents", documents.size()},
          {"num_bytes", num_bytes}};
}

// Writes one split in shards; returns its totals for the manifest.
Json write_split(const std::vector<const Document*>& documents, std::string_view split,
                 const CorpusOptions& options) {
  int64_t num_bytes = 0;
  int num_shards = 0;
  std::string shard;
  const auto flush = [&] {
    base::write_file_atomically(options.output / fmt::format("{}-{:05}.jsonl", split, num_shards++),
                                shard);
    shard.clear();
  };
  for (const Document* document : documents) {
    num_bytes += document->text.size();
    shard += Json{{"source", document->source}, {"path", document->path}, {"text", document->text}}
                 .dump();
    shard += '\n';
    if (static_cast<int64_t>(shard.size()) >= options.shard_bytes) flush();
  }
  if (!shard.empty()) flush();
  return {
      {"num_documents", documents.size()}, {"num_bytes", num_bytes}, {"num_shards", num_shards}};
}

void remove_earlier_corpus(const fs::path& folder) {
  fs::create_directories(folder);
  // Without its manifest a half-written corpus is not taken for a whole one.
  fs::remove(folder / "manifest.json");
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".jsonl") fs::remove(entry.path());
  }
}

Document parse_document(const std::string& line, const std::string& where) {
  const Json json = base::parse_json(line, where);
  if (!json.is_object() || !json.contains("text") || !json.at("text").is_string()) {
    fail("{}: expected a document {{\"source\", \"path\", \"text\"}}", where);
  }
  return {json.value("source", ""), json.value("path", ""), json.at("text").get<std::string>()};
}

}  // namespace

std::vector<fs::path> corpus_files(const fs::path& folder, std::string_view split) {
  if (!fs::exists(folder / "manifest.json")) {
    fail("{}: no corpus here (manifest.json is missing): make one with 'fathom corpus'",
         folder.string());
  }
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(fmt::format("{}-", split)) && name.ends_with(".jsonl")) {
      files.push_back(entry.path());
    }
  }
  if (files.empty()) fail("{}: the corpus has no split '{}'", folder.string(), split);
  std::sort(files.begin(), files.end());
  return files;
}

void read_documents(const fs::path& folder, std::string_view split,
                    const std::function<void(const Document&)>& read) {
  for (const fs::path& path : corpus_files(folder, split)) {
    std::ifstream file(path);
    if (!file) fail("{}: can't open", path.string());
    int line_number = 0;
    for (std::string line; std::getline(file, line);) {
      read(parse_document(line, fmt::format("{}:{}", path.string(), ++line_number)));
    }
  }
}

void build_corpus(const CorpusOptions& options) {
  const std::vector<CorpusSource> sources = read_recipe(options.recipe);
  base::Progress progress("corpus", static_cast<double>(sources.size()), "packages");
  std::unordered_set<uint64_t> seen;
  std::vector<HashedDocument> all;
  Json manifest = {{"sources", Json::array()}};
  for (size_t i = 0; i < sources.size(); ++i) {
    progress.update(static_cast<double>(i), sources[i].package);
    const UnpackedSource unpacked = unpack_source(sources[i], options.cache);
    std::vector<HashedDocument> documents = read_source(sources[i], unpacked.folder, &seen);
    manifest["sources"].push_back(describe_source(sources[i], unpacked.version, documents));
    std::move(documents.begin(), documents.end(), std::back_inserter(all));
  }
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.hash < b.hash; });
  std::vector<const Document*> train, validation;
  for (const HashedDocument& document : all) {
    // The low bits decide the split, the high bits the order.
    const bool is_held_out = document.hash % options.validation_share == 0;
    (is_held_out ? validation : train).push_back(&document.document);
  }
  remove_earlier_corpus(options.output);
  manifest["train"] = write_split(train, "train", options);
  manifest["validation"] = write_split(validation, "validation", options);
  base::write_file_atomically(options.output / "manifest.json", manifest.dump(2) + "\n");
  progress.finish();
}

// FNV-1a over the bytes, then the finaliser of MurmurHash3: FNV's low bits alone mix badly.
uint64_t document_hash(std::string_view text) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3u;
  hash = (hash ^ hash >> 33) * 0xFF51AFD7ED558CCDu;
  hash = (hash ^ hash >> 33) * 0xC4CEB9FE1A85EC53u;
  return hash ^ hash >> 33;
}

}  // namespace fathom::text
