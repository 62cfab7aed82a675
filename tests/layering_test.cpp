// The house's rules about files, checked over the sources: chapters include only themselves and
// the chapters above them, LibTorch stays where it belongs, no file names a machine.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/file.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

const fs::path kRoot = FATHOM_ROOT;

// The folders of src/ and, before its command, bench/.
const std::vector<std::string> kReadingOrder = {
    "base",      "kernels", "text",       "model",  "pretrain", "engine", "agents",
    "synthesis", "rl",      "evaluation", "server", "bench",    "cli"};
const std::vector<std::string> kTorchFreeChapters = {"base", "kernels", "text"};
// Headers that chapters include which only carry a model around: LibTorch's would cost each of
// their files half a minute of compile time.
const std::vector<std::string> kTorchFreeHeaders = {
    "model/config.h",    "model/model.h",        "model/safetensors.h",
    "model/kv_cache.h",  "model/forward_file.h", "pretrain/ranks.h",
    "pretrain/recipe.h", "pretrain/stage.h",     "pretrain/training_run.h",
};
const std::vector<std::string> kTorchFreeHeadersOf = {"engine", "server"};

int64_t place(const std::string& chapter) {
  return std::find(kReadingOrder.begin(), kReadingOrder.end(), chapter) - kReadingOrder.begin();
}

std::string folder_of(const std::string& path) { return path.substr(0, path.find('/')); }

bool contains(const std::vector<std::string>& list, const std::string& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

bool is_torch_free(const std::string& path) {
  const std::string chapter = folder_of(path);
  return contains(kTorchFreeChapters, chapter) || contains(kTorchFreeHeaders, path) ||
         (contains(kTorchFreeHeadersOf, chapter) && path.ends_with(".h"));
}

struct Include {
  int line;
  std::string path;
  bool is_quoted;
};

std::vector<Include> includes_of(const std::string& source) {
  std::vector<Include> includes;
  std::istringstream lines(source);
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    const size_t hash = line.find_first_not_of(" \t");
    if (hash == std::string::npos || line.compare(hash, 8, "#include") != 0) continue;
    const size_t open = line.find_first_of("\"<", hash);
    const size_t close = open == std::string::npos ? open : line.find_first_of("\">", open + 1);
    if (close == std::string::npos) continue;
    includes.push_back({number, line.substr(open + 1, close - open - 1), line[open] == '"'});
  }
  return includes;
}

// What is wrong with a file of src/, one line a fault. `path` is relative to src/.
std::vector<std::string> faults_of_source(const std::string& path, const std::string& source) {
  std::vector<std::string> faults;
  const std::string chapter = folder_of(path);
  const auto count = static_cast<int64_t>(kReadingOrder.size());
  if (place(chapter) == count) return {fmt::format("{}: {} is not a chapter", path, chapter)};
  for (const auto& [line, included, is_quoted] : includes_of(source)) {
    const std::string where = fmt::format("{}:{} includes {}", path, line, included);
    const std::string other = folder_of(included);
    // A torch-free header of the model may include only its like.
    const bool is_torch =
        is_quoted ? (other == "model" || other == "pretrain") && !is_torch_free(included)
                  : other == "torch" || other == "ATen" || other == "c10";
    if (is_quoted && place(other) == count)
      faults.push_back(where + ": not a chapter's file");
    else if (is_quoted && place(other) > place(chapter))
      faults.push_back(where + ": a later chapter");
    else if (included == "torch/torch.h" || included == "torch/extension.h")
      faults.push_back(where + ": takes minutes to compile; name the headers that are needed");
    else if (is_torch && is_torch_free(path))
      faults.push_back(where + ": this file is torch-free");
  }
  return faults;
}

// Paths that exist on one machine only. Put together here, so that this file does not hold them.
std::vector<std::string> faults_of_text(const std::string& path, const std::string& text) {
  std::vector<std::string> faults;
  for (const char* folder : {"work", "root", "home"}) {
    const std::string name = fmt::format("/{}/", folder);
    for (size_t at = text.find(name); at != std::string::npos; at = text.find(name, at + 1)) {
      const char before = at == 0 ? ' ' : text[at - 1];
      // Only the beginning of a path: "docs/work/" and "host.org/home/" are something else.
      if (std::isalnum(static_cast<unsigned char>(before)) || before == '.' || before == '-' ||
          before == '_' || before == '}' || before == ')')
        continue;
      const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<int64_t>(at), '\n');
      faults.push_back(fmt::format("{}:{}: names a folder of one machine ({})", path, line, name));
      break;
    }
  }
  return faults;
}

// Files that git knows, relative to the root, without those deleted from the checkout. What
// somebody is still writing is judged when it is added. safe.directory: the checkout may be another
// user's.
std::vector<std::string> tracked_files() {
  const std::string command =
      "git -c safe.directory='*' -C '" + kRoot.string() + "' ls-files -z 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) fail("git ls-files did not start; make setup installs git");
  std::string output;
  char buffer[4096];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) output.append(buffer, n);
  if (pclose(pipe) != 0) fail("git ls-files in {} failed: {}", kRoot.string(), output);
  std::vector<std::string> files;
  std::istringstream names(output);
  for (std::string name; std::getline(names, name, '\0');)
    if (fs::is_regular_file(kRoot / name)) files.push_back(name);
  return files;
}

// The tracked files of a folder, relative to that folder.
std::vector<std::string> files_under(const std::string& folder) {
  std::vector<std::string> files;
  for (const std::string& file : tracked_files())
    if (file.starts_with(folder + "/")) files.push_back(file.substr(folder.size() + 1));
  return files;
}

std::string read_tracked(const std::string& file) { return base::read_file(kRoot / file); }

int64_t num_lines(const std::string& text) { return std::count(text.begin(), text.end(), '\n'); }

std::string joined(const std::vector<std::string>& faults) {
  return fmt::format("{}", fmt::join(faults, "\n"));
}

TEST(Layering, ChaptersIncludeOnlyWhatComesBefore) {
  std::vector<std::string> faults;
  int num_files = 0;
  for (const std::string& file : tracked_files()) {
    const bool is_source = file.starts_with("src/") || file.starts_with("bench/");
    if (!is_source || (!file.ends_with(".h") && !file.ends_with(".cpp"))) continue;
    ++num_files;
    const std::string path = file.starts_with("src/") ? file.substr(4) : file;
    const auto found = faults_of_source(path, read_tracked(file));
    faults.insert(faults.end(), found.begin(), found.end());
  }
  EXPECT_GT(num_files, 20);
  EXPECT_TRUE(faults.empty()) << joined(faults);
}

TEST(Layering, TorchFreeHeadersExist) {
  for (const std::string& header : kTorchFreeHeaders)
    EXPECT_TRUE(fs::exists(kRoot / "src" / header)) << header << " moved: correct the list";
}

TEST(Layering, TheCheckFindsFaults) {
  const auto num_faults = [](const std::string& path, const std::string& source) {
    return faults_of_source(path, source).size();
  };
  EXPECT_EQ(num_faults("model/a.cpp", "#include \"text/b.h\"\n#include <vector>\n"), 0u);
  const auto later = faults_of_source("text/a.cpp", "// x\n  #include \"model/b.h\"\n");
  ASSERT_EQ(later.size(), 1u);
  EXPECT_EQ(later[0], "text/a.cpp:2 includes model/b.h: a later chapter");
  EXPECT_EQ(num_faults("base/a.h", "#include \"../model/b.h\"\n"), 1u);
  EXPECT_EQ(num_faults("kernels/a.h", "#include <ATen/ATen.h>\n"), 1u);
  EXPECT_EQ(num_faults("model/a.h", "#include <torch/torch.h>\n"), 1u);
  EXPECT_EQ(num_faults("model/a.h", "#include <torch/types.h>\n"), 0u);
  EXPECT_EQ(num_faults("model/config.h", "#include \"model/tensor.h\"\n"), 1u);
  EXPECT_EQ(num_faults("engine/a.h", "#include \"model/tensor.h\"\n"), 1u);
  EXPECT_EQ(num_faults("engine/a.h", "#include \"model/transformer.h\"\n"), 1u);
  EXPECT_EQ(num_faults("engine/a.h", "#include \"model/model.h\"\n"), 0u);
  EXPECT_EQ(num_faults("engine/a.cpp", "#include \"model/tensor.h\"\n"), 0u);
  EXPECT_EQ(num_faults("misc/a.h", ""), 1u);
}

TEST(House, NoFileNamesAMachine) {
  std::vector<std::string> faults;
  for (const std::string& file : tracked_files()) {
    const std::string text = read_tracked(file);
    if (text.find('\0') != std::string::npos) continue;
    const auto found = faults_of_text(file, text);
    faults.insert(faults.end(), found.begin(), found.end());
  }
  EXPECT_TRUE(faults.empty()) << joined(faults);
}

TEST(House, TheMachineCheckFindsFaults) {
  const std::string folder = "/ro" + std::string("ot/x");
  EXPECT_EQ(faults_of_text("a", "one\ncd " + folder).size(), 1u);
  EXPECT_EQ(faults_of_text("a", "\"" + folder + "\"").size(), 1u);
  EXPECT_TRUE(faults_of_text("a", "docs" + folder).empty());
}

TEST(House, EveryChapterOpensWithAShortReadme) {
  std::set<std::string> chapters;
  for (const std::string& file : files_under("src")) chapters.insert(folder_of(file));
  for (const std::string& chapter : chapters) {
    const std::string readme = "src/" + chapter + "/README.md";
    ASSERT_TRUE(fs::exists(kRoot / readme)) << readme << " is missing";
    EXPECT_LE(num_lines(read_tracked(readme)), 30) << readme;
  }
}

TEST(House, CommandsAreShort) {
  for (const std::string& file : files_under("src/cli"))
    EXPECT_LE(num_lines(read_tracked("src/cli/" + file)), 100) << file;
}

}  // namespace
}  // namespace fathom
