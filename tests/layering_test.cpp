// The house's rules about files, checked over the sources: chapters include only themselves and
// the chapters above them, LibTorch stays where it belongs, no file names a machine.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

const fs::path kRoot = FATHOM_ROOT;

const std::vector<std::string> kReadingOrder = {"base",     "kernels",    "text",   "model",
                                                "pretrain", "engine",     "agents", "synthesis",
                                                "rl",       "evaluation", "server", "cli"};
const std::vector<std::string> kTorchFree = {"base", "kernels", "text"};

int64_t place(const std::string& chapter) {
  return std::find(kReadingOrder.begin(), kReadingOrder.end(), chapter) - kReadingOrder.begin();
}

std::string folder_of(const std::string& path) { return path.substr(0, path.find('/')); }

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
    if (is_quoted && place(other) == count) faults.push_back(where + ": not a chapter's file");
    if (is_quoted && place(other) < count && place(other) > place(chapter))
      faults.push_back(where + ": a later chapter");
    if (included == "torch/torch.h" || included == "torch/extension.h")
      faults.push_back(where + ": takes minutes to compile; name the headers that are needed");
    const bool is_torch = other == "torch" || other == "ATen" || other == "c10";
    if (is_torch && std::count(kTorchFree.begin(), kTorchFree.end(), chapter) != 0)
      faults.push_back(where + ": this chapter is torch-free");
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

std::vector<fs::path> files_under(const fs::path& folder) {
  std::vector<fs::path> files;
  if (!fs::exists(folder)) return files;
  auto entry = fs::recursive_directory_iterator(folder);
  for (; entry != fs::recursive_directory_iterator(); ++entry) {
    if (entry->path().filename() == "node_modules") entry.disable_recursion_pending();
    if (entry->is_regular_file()) files.push_back(entry->path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<fs::path> house_files() {
  std::vector<fs::path> files;
  for (const char* folder :
       {".ci", "bench", "cmake", "docs", "models", "recipes", "scripts", "src", "tests", "web"})
    for (const auto& file : files_under(kRoot / folder)) files.push_back(file);
  for (const auto& entry : fs::directory_iterator(kRoot))
    if (entry.is_regular_file()) files.push_back(entry.path());
  return files;
}

std::string relative_to(const fs::path& file, const fs::path& folder) {
  return fs::relative(file, folder).generic_string();
}

std::string joined(const std::vector<std::string>& faults) {
  return fmt::format("{}", fmt::join(faults, "\n"));
}

TEST(Layering, ChaptersIncludeOnlyWhatComesBefore) {
  std::vector<std::string> faults;
  int num_files = 0;
  for (const auto& file : files_under(kRoot / "src")) {
    if (file.extension() != ".h" && file.extension() != ".cpp") continue;
    ++num_files;
    const auto found = faults_of_source(relative_to(file, kRoot / "src"), base::read_file(file));
    faults.insert(faults.end(), found.begin(), found.end());
  }
  EXPECT_GT(num_files, 20);
  EXPECT_TRUE(faults.empty()) << joined(faults);
}

TEST(Layering, TheCheckFindsFaults) {
  EXPECT_TRUE(
      faults_of_source("model/a.cpp", "#include \"text/b.h\"\n#include <vector>\n").empty());
  const auto later = faults_of_source("text/a.cpp", "// x\n  #include \"model/b.h\"\n");
  ASSERT_EQ(later.size(), 1u);
  EXPECT_EQ(later[0], "text/a.cpp:2 includes model/b.h: a later chapter");
  EXPECT_EQ(faults_of_source("base/a.h", "#include \"../model/b.h\"\n").size(), 1u);
  EXPECT_EQ(faults_of_source("kernels/a.h", "#include <ATen/ATen.h>\n").size(), 1u);
  EXPECT_EQ(faults_of_source("model/a.h", "#include <torch/torch.h>\n").size(), 1u);
  EXPECT_EQ(faults_of_source("model/a.h", "#include <torch/types.h>\n").size(), 0u);
  EXPECT_EQ(faults_of_source("misc/a.h", "").size(), 1u);
}

TEST(House, NoFileNamesAMachine) {
  std::vector<std::string> faults;
  for (const auto& file : house_files()) {
    const std::string text = base::read_file(file);
    if (text.find('\0') != std::string::npos) continue;
    const auto found = faults_of_text(relative_to(file, kRoot), text);
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
  for (const auto& entry : fs::directory_iterator(kRoot / "src")) {
    if (!entry.is_directory()) continue;
    const fs::path readme = entry.path() / "README.md";
    EXPECT_TRUE(fs::exists(readme)) << relative_to(readme, kRoot) << " is missing";
    if (!fs::exists(readme)) continue;
    const std::string text = base::read_file(readme);
    EXPECT_LE(std::count(text.begin(), text.end(), '\n'), 30) << relative_to(readme, kRoot);
  }
}

TEST(House, CommandsAreShort) {
  for (const auto& file : files_under(kRoot / "src" / "cli")) {
    const std::string text = base::read_file(file);
    EXPECT_LE(std::count(text.begin(), text.end(), '\n'), 100) << relative_to(file, kRoot);
  }
}

}  // namespace
}  // namespace fathom
