#include "model/verify.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "base/check.h"
#include "base/file.h"
#include "model/safetensors.h"

namespace fathom::model {
namespace {

class VerifyTest : public testing::Test {
 protected:
  VerifyTest() {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    write(1.5f);
  }
  ~VerifyTest() override { std::filesystem::remove_all(folder_); }

  void write(float value, const std::string& name = "w") {
    const float values[] = {1, value};
    const NamedTensor tensor{name, {DType::kF32, {2}, reinterpret_cast<const std::byte*>(values)}};
    write_safetensors(folder_ / "model.safetensors", {&tensor, 1});
  }
  std::string error() {
    try {
      verify_checkpoint(folder_);
    } catch (const Error& e) {
      return e.what();
    }
    return "sound";
  }

  const std::string names_[1] = {"model.safetensors"};
  std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("fathom_verify_" + std::to_string(::getpid()));
};

TEST_F(VerifyTest, FindsOneFlippedBit) {
  add_checksums(folder_, names_);
  EXPECT_EQ(error(), "sound");
  std::string content = base::read_file(folder_ / "model.safetensors");
  content.back() = static_cast<char>(content.back() ^ 1);  // still a finite number
  base::write_file_atomically(folder_ / "model.safetensors", content);
  EXPECT_NE(error().find("model.safetensors: its SHA-256 is "), std::string::npos) << error();
  EXPECT_NE(error().find("the file is damaged or was changed"), std::string::npos);
}

// The sum of "abc" is published with the standard (FIPS 180-4).
TEST_F(VerifyTest, ReadsAndWritesAsSha256sumDoes) {
  base::write_file_atomically(folder_ / "abc", "abc");
  const std::string names[] = {"abc"};
  add_checksums(folder_, names);
  EXPECT_EQ(base::read_file(folder_ / kChecksumFile),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  abc\n");
  EXPECT_NE(error().find("is not in SHA256SUMS"), std::string::npos) << error();
  base::write_file_atomically(folder_ / kChecksumFile, "ba78  abc\n");
  EXPECT_NE(error().find("line 1 is not 64 hex digits"), std::string::npos) << error();
}

TEST_F(VerifyTest, ReadsListsOfOtherProgramsToo) {
  add_checksums(folder_, names_);
  std::string list = base::read_file(folder_ / kChecksumFile);
  for (size_t i = 0; i < 64; ++i) list[i] = static_cast<char>(std::toupper(list[i]));
  list.replace(list.find("  model"), 2, "  ./").replace(list.find('\n'), 1, "\r\n");
  base::write_file_atomically(folder_ / kChecksumFile, list);
  EXPECT_EQ(error(), "sound");
}

TEST_F(VerifyTest, FindsValuesThatNoTrainingWrites) {
  write(std::nanf(""));
  EXPECT_NE(error().find("tensor w holds values that are not finite"), std::string::npos);
  write(-1, "a.weight_scale_inv");
  EXPECT_NE(error().find("a.weight_scale_inv holds factors that are not positive"),
            std::string::npos);
  write(-1);
  EXPECT_EQ(error(), "sound");
}

TEST_F(VerifyTest, TheBundledModelIsSound) {
  EXPECT_NO_THROW(verify_checkpoint(std::filesystem::path(FATHOM_ROOT) / "models/nano"));
  EXPECT_TRUE(
      std::filesystem::exists(std::filesystem::path(FATHOM_ROOT) / "models/nano" / kChecksumFile));
}

}  // namespace
}  // namespace fathom::model
