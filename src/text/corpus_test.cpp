#include "text/corpus.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <map>

#include "base/check.h"
#include "base/file.h"
#include "text/run_program.h"

namespace fathom::text {
namespace {

namespace fs = std::filesystem;

// A Debian package made here stands in the cache, as if downloaded.
class Corpus : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / fmt::format("fathom_corpus_{}", getpid());
    fs::remove_all(folder_);
    const fs::path tree = folder_ / "tree";
    fs::create_directories(tree / "DEBIAN");
    fs::create_directories(tree / "usr/share/doc/sample");
    base::write_file_atomically(tree / "DEBIAN/control",
                                "Package: sample\nVersion: 1.2-3\nArchitecture: all\n"
                                "Maintainer: Nobody <n@example.org>\nDescription: sample\n");
    for (int i = 0; i < 300; ++i) write_document(tree, i, i % 250);  // 50 doubles
    base::write_file_atomically(tree / "usr/share/doc/sample/skip.txt", document(999));
    fs::create_directories(folder_ / "cache/deb-sample");
    run_program({"dpkg-deb", "--root-owner-group", "-b", tree.string(),
                 (folder_ / "cache/deb-sample/sample_1.2-3_all.deb").string()},
                folder_);
    options_.recipe = folder_ / "recipe.json";
    options_.output = folder_ / "text";
    options_.cache = folder_ / "cache";
    options_.validation_share = 10;
    options_.shard_bytes = 20000;
    recipe_ = {{"corpus",
                {{{"package", "sample"},
                  {"kind", "text"},
                  {"under", "usr/share/doc"},
                  {"suffixes", {".txt"}},
                  {"exclude", {"skip"}},
                  {"licence", "CC0-1.0"}}}}};
  }
  void TearDown() override { fs::remove_all(folder_); }

  static std::string document(int number) {
    std::string text;
    for (int i = 0; i < 20; ++i) text += fmt::format("Document number {} has words.\n", number);
    return text;
  }
  static void write_document(const fs::path& tree, int file, int number) {
    base::write_file_atomically(tree / fmt::format("usr/share/doc/sample/{:03}.txt", file),
                                document(number));
  }
  void build() {
    base::write_file_atomically(options_.recipe, recipe_.dump());
    build_corpus(options_);
  }
  std::string error_of_build() {
    try {
      build();
      return "accepted";
    } catch (const Error& error) {
      const std::string what = error.what(), prefix = options_.recipe.string() + ":";
      return what.starts_with(prefix) ? what.substr(prefix.size()) : what;
    }
  }

  fs::path folder_;
  CorpusOptions options_;
  Json recipe_;
};

TEST_F(Corpus, EveryDocumentOnceInOneSplit) {
  build();
  std::map<std::string, int> texts;
  int num_validation = 0, num_train = 0;
  const auto count = [&](const Document& document) {
    EXPECT_EQ(document.source, "sample");
    EXPECT_TRUE(document.path.starts_with("usr/share/doc/sample/")) << document.path;
    ++texts[document.text];
  };
  read_documents(options_.output, "train", [&](const Document& d) { ++num_train, count(d); });
  read_documents(options_.output, "validation", [&](const Document& d) {
    ++num_validation, count(d);
    EXPECT_EQ(document_hash(d.text) % 10, 0u);
  });
  EXPECT_EQ(texts.size(), 250u);
  EXPECT_EQ(num_train + num_validation, 250);
  EXPECT_GT(num_validation, 5);
  EXPECT_LT(num_validation, 60);
  EXPECT_GT(corpus_files(options_.output, "train").size(), 3u);

  const Json manifest = base::read_json_file(options_.output / "manifest.json");
  const Json& source = manifest.at("sources").at(0);
  EXPECT_EQ(source.at("version"), "1.2-3");
  EXPECT_EQ(source.at("licence"), "CC0-1.0");
  EXPECT_EQ(source.at("num_documents"), 250);
  EXPECT_EQ(manifest.at("train").at("num_documents"), num_train);
}

TEST_F(Corpus, SameBytesEveryTime) {
  const auto all_bytes = [&] {
    std::string bytes;
    for (const char* split : {"train", "validation"}) {
      for (const fs::path& path : corpus_files(options_.output, split)) {
        bytes += base::read_file(path);
      }
    }
    return bytes;
  };
  build();
  const std::string first = all_bytes();
  fs::remove_all(options_.cache / "deb-sample/files");
  build();
  EXPECT_EQ(all_bytes(), first);
}

TEST_F(Corpus, LimitTakesTheFirstByHash) {
  recipe_["corpus"][0]["max_megabytes"] = 0.01;
  build();
  const Json manifest = base::read_json_file(options_.output / "manifest.json");
  const int64_t num_bytes = manifest.at("sources").at(0).at("num_bytes");
  EXPECT_GE(num_bytes, 10000);
  EXPECT_LT(num_bytes, 11000);
}

TEST_F(Corpus, ARecipeWithoutSourcesIsRefused) {
  recipe_ = {{"data", "x"}};
  EXPECT_EQ(error_of_build(),
            " 'corpus' is missing; expected a list of sources to gather text from");
  recipe_["corpus"] = 5;
  EXPECT_EQ(error_of_build(), "1: 'corpus' must be a list of sources");
  recipe_["corpus"] = Json::array();
  EXPECT_EQ(error_of_build(), "1: 'corpus' is empty");
}

TEST_F(Corpus, BadRecipesAreNamed) {
  Json& source = recipe_["corpus"][0];
  const Json good = source;
  source["kind"] = "pdf";
  EXPECT_EQ(error_of_build(), "1: corpus[0].kind: unknown kind 'pdf'");
  source = good;
  source.erase("licence");
  EXPECT_EQ(error_of_build(), "1: corpus[0]: 'licence' is missing: no text of unclear licence");
  source = good;
  source["package"] = "--option";
  EXPECT_EQ(error_of_build(), "1: corpus[0].package: '--option' is not the name of a package");
  source = good;
  source["colour"] = 1;
  EXPECT_EQ(error_of_build(), "1: corpus[0].colour: unknown key");
  source = good;
  base::write_file_atomically(options_.recipe, "{\"corpus\": [\n\n  {\"package\": 5}]}");
  try {
    build_corpus(options_);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.what(),
              options_.recipe.string() + ":3: corpus[0].package: expected a string, found 5");
  }
  source["suffixes"] = {".none"};
  EXPECT_EQ(error_of_build(), "sample: no file under 'usr/share/doc' matches");
  source = good;
  source["under"] = "nowhere";
  EXPECT_EQ(error_of_build(), "sample: has no nowhere");
}

TEST_F(Corpus, ReadingReportsTheLine) {
  EXPECT_THROW(corpus_files(options_.output, "train"), Error);
  build();
  const fs::path path = options_.output / "train-00000.jsonl";
  base::write_file_atomically(path, "{\"text\": \"fine\"}\n{\"txt\": 1}\n");
  try {
    read_documents(options_.output, "train", [](const Document&) {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              path.string() + ":2: expected a document {\"source\", \"path\", \"text\"}");
  }
}

TEST(RunProgram, ReportsFailure) {
  EXPECT_EQ(run_program({"printf", "%s", "a b"}, "/"), "a b");
  try {
    run_program({"no-such-program-here"}, "/");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "no-such-program-here no-such-program-here: the program is not installed");
  }
  EXPECT_THROW(run_program({"false"}, "/"), Error);
}

}  // namespace
}  // namespace fathom::text
