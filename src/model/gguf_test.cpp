#include "model/gguf.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/check.h"
#include "model/test_gguf.h"

namespace fathom::model {
namespace {

class GgufTest : public testing::Test {
 protected:
  ~GgufTest() override { std::filesystem::remove(path_); }
  std::filesystem::path path_ = std::filesystem::temp_directory_path() /
                                ("fathom_gguf_" + std::to_string(::getpid()) + ".gguf");
};

GgufTensor floats(const std::string& name, std::vector<int64_t> shape, std::vector<float> values) {
  return {name, std::move(shape), GgufType::kF32, [values](const GgufTensor::Sink& sink) {
            for (const float value : values) sink(&value, sizeof(value));  // in pieces
          }};
}

TEST_F(GgufTest, ReadsBackEveryKindOfValueAndEveryTensor) {
  const std::vector<GgufField> fields = {
      {"count", uint32_t{7}},
      {"scale", 2.5f},
      {"flag", true},
      {"name", std::string("nano")},
      {"words", std::vector<std::string>{"a", "", "\xC4\xA0"}},
      {"types", std::vector<int32_t>{1, -3}},
  };
  const std::vector<GgufTensor> tensors = {floats("first", {3}, {1, 2, 3}),
                                           floats("second", {2, 1, 3}, {1, 2, 3, 4, 5, 6})};
  write_gguf(path_, fields, tensors);
  const GgufFile file = read_gguf(path_);
  EXPECT_EQ(file.numbers.at("count"), 7);
  EXPECT_EQ(file.numbers.at("scale"), 2.5);
  EXPECT_EQ(file.numbers.at("flag"), 1);
  EXPECT_EQ(file.texts.at("name"), "nano");
  EXPECT_EQ(file.lists.at("words"), (std::vector<std::string>{"a", "", "\xC4\xA0"}));
  EXPECT_EQ(file.lists.at("types"), (std::vector<std::string>{"1", "-3"}));
  EXPECT_EQ(file.tensors.at("second").dims, (std::vector<uint64_t>{3, 1, 2}));
  std::vector<float> values(6);
  std::memcpy(values.data(), file.tensors.at("second").data, 24);
  EXPECT_EQ(values, (std::vector<float>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(file.bytes.size() % 32, 0);
}

TEST_F(GgufTest, LeavesNothingWhereATensorGivesTooFewBytes) {
  const std::vector<GgufTensor> tensors = {floats("short", {4}, {1, 2, 3})};
  EXPECT_THROW(write_gguf(path_, {}, tensors), InternalError);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

}  // namespace
}  // namespace fathom::model
