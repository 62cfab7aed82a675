#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/json_lines.h"
#include "base/memory.h"
#include "base/parallel.h"
#include "base/progress.h"
#include "base/random.h"

namespace fathom::base {
namespace {

TEST(Check, NamesValuesFileAndLine) {
  try {
    const int heads = 3;
    CHECK_EQ(heads, 4);
    FAIL();
  } catch (const InternalError& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find("base_test.cpp:"), std::string::npos) << what;
    EXPECT_NE(what.find("heads == 4: 3 vs 4"), std::string::npos) << what;
  }
}

TEST(Memory, LiveHeapCountsWhatIsNotFreed) {
  if (live_heap_bytes() == 0) GTEST_SKIP() << "the C library does not count";
  for (int64_t bytes : {int64_t{100'000}, int64_t{100'000'000}}) {  // an arena's, a mapping's
    const int64_t before = live_heap_bytes();
    auto buffer = std::make_unique<std::vector<char>>(bytes, 'x');
    const int64_t with = live_heap_bytes();
    EXPECT_GE(with - before, bytes);
    EXPECT_LT(with - before, bytes + 70'000);
    buffer.reset();
    EXPECT_LT(live_heap_bytes() - before, 70'000);
  }
}

TEST(Parallel, CoversEveryItemOnce) {
  for (int threads : {1, 2, 3}) {
    set_num_threads(threads);
    std::vector<std::atomic<int>> visits(1001);
    parallel_for(1001, 7, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++visits[i];
    });
    for (const auto& count : visits) EXPECT_EQ(count, 1);
  }
  set_num_threads(2);
}

TEST(Parallel, LoopsOfSeveralThreadsAndLoopsInsideLoopsAreWhole) {
  set_num_threads(3);
  std::atomic<int64_t> total = 0;
  const auto add_loops = [&] {
    for (int round = 0; round < 500; ++round)
      parallel_for(40, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          parallel_for(5, 1, [&](int64_t from, int64_t to) { total += to - from; });
      });
  };
  std::thread first(add_loops), second(add_loops);
  add_loops();
  first.join();
  second.join();
  EXPECT_EQ(total, 3 * 500 * 40 * 5);
  set_num_threads(2);
}

TEST(Parallel, RethrowsTheBodysException) {
  EXPECT_THROW(parallel_for(100, 1,
                            [](int64_t begin, int64_t) {
                              if (begin > 10) fail("item {}", begin);
                            }),
               Error);
}

TEST(Random, IsAFunctionOfSeedStreamAndPosition) {
  Random a(7, 1), b(7, 1), other(7, 2);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(a.next(), b.next());
  EXPECT_NE(a.next(), other.next());
  const uint64_t position = b.position();
  const uint64_t value = b.next();
  b.seek(position);
  EXPECT_EQ(b.next(), value);
}

TEST(Random, NormalHasUnitVariance) {
  Random random(1);
  double sum = 0, squares = 0;
  constexpr int kCount = 100000;
  for (int i = 0; i < kCount; ++i) {
    const double x = random.normal();
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kCount, 0.0, 0.02);
  EXPECT_NEAR(squares / kCount, 1.0, 0.03);
}

TEST(File, UncommittedWriteLeavesNothing) {
  const auto folder = std::filesystem::temp_directory_path() / "fathom_base_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  {
    AtomicFile file(folder / "a");
    file.write("half");
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  write_file_atomically(folder / "a", "whole");
  EXPECT_EQ(read_file(folder / "a"), "whole");
  EXPECT_EQ(MappedFile::open(folder / "a")->bytes().size(), 5u);
  std::filesystem::remove_all(folder);
}

TEST(File, FullDiskIsAnErrorThatNamesTheFile) {
  // /dev/full refuses every write with ENOSPC; the temporary name beside it cannot be created, so
  // the write path is driven through a link.
  const auto folder = std::filesystem::temp_directory_path() / "fathom_full_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  std::filesystem::create_symlink("/dev/full", folder / ("a.tmp." + std::to_string(::getpid())));
  try {
    write_file_atomically(folder / "a", "x");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("a: cannot write: No space left"), std::string::npos)
        << error.what();
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  std::filesystem::remove_all(folder);
}

TEST(File, AMissingFolderIsNamed) {
  const auto folder = std::filesystem::temp_directory_path() / "fathom_missing_folder";
  std::filesystem::remove_all(folder);
  try {
    write_file_atomically(folder / "a", "x");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what())
                  .find((folder / "a").string() + ": there is no folder " + folder.string()),
              std::string::npos)
        << error.what();
  }
}

TEST(File, WritesOverNothingButFiles) {
  const auto folder = std::filesystem::temp_directory_path() / "fathom_special_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder / "folder");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  std::filesystem::create_symlink("/dev/null", folder / "device");
  for (const char* name : {"folder", "pipe", "device"}) {
    const auto type = std::filesystem::symlink_status(folder / name).type();
    EXPECT_THROW(write_file_atomically(folder / name, "x"), Error) << name;
    EXPECT_EQ(std::filesystem::symlink_status(folder / name).type(), type) << name;
  }
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 3);
  std::filesystem::remove_all(folder);
}

TEST(File, MapsNothingButFilesAndWaitsForNoPipe) {
  const auto folder = std::filesystem::temp_directory_path() / "fathom_pipe_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder / "folder");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  for (const char* name : {"folder", "pipe", "missing"})
    EXPECT_THROW(MappedFile::open(folder / name), Error) << name;
  std::filesystem::remove_all(folder);
}

TEST(Json, ABadByteIsShownAsANumber) {
  try {
    parse_json("{\"a\": \"x\xff\"}", "c");
    FAIL();
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find("\\xff"), std::string::npos) << what;
    EXPECT_EQ(what.find('\xff'), std::string::npos) << what;
  }
}

TEST(Json, AFileGivesNoKeyTwice) {
  const std::string text = R"({"a": {"b": 1, "c": [{"b": 2}]}, "b": {"b": 1, "b": 2}})";
  EXPECT_NO_THROW(parse_json(text, "t"));
  try {
    parse_json(text, "t", DuplicateKeys::kRefused);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "t: key \"b\" stands twice in one object");
  }
}

TEST(Json, ErrorsNameSourceLineAndColumn) {
  try {
    parse_json("{\n \"a\": x}", "config.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(
        std::string(error.what()).rfind("config.json: not valid JSON at line 2, column 7: ", 0), 0u)
        << error.what();
  }
}

TEST(Progress, FormatsUnits) {
  EXPECT_EQ(format_seconds(3.21), "3.2 s");
  EXPECT_EQ(format_seconds(245), "4 min 05 s");
  EXPECT_EQ(format_bytes(1536 * 1024), "1.5 MiB");
}

TEST(JsonLines, FindsKeysAndEntriesWhereverTheyStand) {
  const std::string text = R"({"a": 1, "b": {
  "c": [10, {"d": "x\" ] \n, {",
    "e": null}, [], -2.5e3
  ],
  "f": true},

  "g": {}, "h": [[1,
   2]]
})";
  ASSERT_NO_THROW(parse_json(text, "test"));
  const std::map<std::string, int64_t> expected = {
      {"a", 1},        {"b", 1},        {"b.c", 2},    {"b.c[0]", 2},  {"b.c[1]", 2},
      {"b.c[1].d", 2}, {"b.c[1].e", 3}, {"b.c[2]", 3}, {"b.c[3]", 3},  {"b.f", 5},
      {"g", 7},        {"h", 7},        {"h[0]", 7},   {"h[0][0]", 7}, {"h[0][1]", 8}};
  EXPECT_EQ(json_lines(text), expected);
}

}  // namespace
}  // namespace fathom::base
