#include "model/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

#include "base/check.h"

namespace fathom::model {
namespace {

class SafetensorsTest : public testing::Test {
 protected:
  SafetensorsTest()
      : path_(std::filesystem::temp_directory_path() /
              ("fathom_safetensors_" + std::to_string(::getpid()))) {}
  ~SafetensorsTest() override { std::filesystem::remove(path_); }

  // A file of a header and `data_bytes` zero bytes.
  void write(const std::string& header, size_t data_bytes) {
    const uint64_t length = header.size();
    std::string content(8, '\0');
    std::memcpy(content.data(), &length, 8);
    base::write_file_atomically(path_, content + header + std::string(data_bytes, '\0'));
  }

  // The error of opening the file, without the path in front.
  std::string error() {
    try {
      Safetensors::open(path_);
    } catch (const Error& e) {
      const std::string what = e.what();
      EXPECT_EQ(what.rfind(path_.string() + ": ", 0), 0u) << what;
      return what.substr(path_.string().size() + 2);
    }
    return "opened";
  }

  std::filesystem::path path_;
};

TEST_F(SafetensorsTest, RoundTrip) {
  const float values[] = {1, 2, 3, 4, 5, 6};
  const uint16_t narrow[] = {7, 8};
  const NamedTensor tensors[] = {
      {"b", {DType::kF32, {2, 3}, reinterpret_cast<const std::byte*>(values)}},
      {"a", {DType::kU16, {2}, reinterpret_cast<const std::byte*>(narrow)}}};
  write_safetensors(path_, tensors, {{"format", "pt"}});
  const auto file = Safetensors::open(path_);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.at("b").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::memcmp(file.at("b").data, values, sizeof values), 0);
  EXPECT_EQ(std::memcmp(file.at("a").data, narrow, sizeof narrow), 0);
  EXPECT_THROW(file.at("c"), Error);
}

TEST_F(SafetensorsTest, RefusesTruncatedAndLyingHeaders) {
  base::write_file_atomically(path_, "abc");
  EXPECT_EQ(error(), "3 bytes long; a safetensors file begins with an 8-byte header length");
  base::write_file_atomically(path_, std::string(8, '\xff') + "{}");
  EXPECT_EQ(error(),
            "header length 18446744073709551615 does not fit the file's 10 bytes; the file is "
            "truncated or not safetensors");
  write("{\"a\": nonsense", 0);
  EXPECT_EQ(error().rfind("header: not valid JSON at line 1", 0), 0u) << error();
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  write(good, 8);
  EXPECT_EQ(error(), "opened");
  write(good, 7);
  EXPECT_EQ(error(),
            "tensor a: data_offsets [0, 8] lie outside the file's 7 bytes of data; the file is "
            "truncated or its header is wrong");
  write(good, 9);
  EXPECT_EQ(error(), "tensors end at byte 8 of 9 bytes of data");
}

TEST_F(SafetensorsTest, RefusesBadEntries) {
  const auto entry = [&](const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
    write("{\"a\":{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets +
              "}}",
          16);
    return error();
  };
  EXPECT_EQ(
      entry("\"F64\"", "[2]", "[0,16]"),
      "tensor a: dtype \"F64\" is not supported; expected F32, F16, BF16, F8_E4M3, I32, I64, U8 "
      "or U16");
  EXPECT_EQ(entry("\"F32\"", "[-4]", "[0,16]"),
            "tensor a: shape is [-4]; expected sizes of at least 0");
  EXPECT_EQ(entry("\"F32\"", "[3]", "[0,16]"),
            "tensor a: F32 of shape [3] takes 12 bytes but data_offsets span 16");
  EXPECT_EQ(entry("\"F32\"", "[4294967296,4294967296]", "[0,16]"),
            "tensor a: shape [4294967296,4294967296] is too large");
  EXPECT_EQ(
      entry("\"F32\"", "[4]", "[16,0]").rfind("tensor a: data_offsets [16, 0] lie outside", 0), 0u);
  write(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
        R"("b":{"dtype":"U8","shape":[8],"data_offsets":[4,12]}})",
        12);
  EXPECT_EQ(error(),
            "tensor b begins at byte 4 of the data; expected 8 (tensors overlap or leave a gap)");
}

TEST_F(SafetensorsTest, RefusesATensorGivenTwice) {
  write(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
        R"("a":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}})",
        16);
  EXPECT_EQ(error(), "header: key \"a\" stands twice in one object");
}

TEST_F(SafetensorsTest, EveryTruncationIsAnErrorAndNothingElse) {
  const float values[8] = {};
  const NamedTensor tensor{"x", {DType::kF32, {8}, reinterpret_cast<const std::byte*>(values)}};
  write_safetensors(path_, {&tensor, 1});
  const std::string whole = base::read_file(path_);
  for (size_t length = 0; length < whole.size(); ++length) {
    base::write_file_atomically(path_, whole.substr(0, length));
    EXPECT_THROW(Safetensors::open(path_), Error) << length;
  }
}

}  // namespace
}  // namespace fathom::model
