// Reads GGUF files back, written from the format's description alone.
#pragma once

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/file.h"

namespace fathom::model {

struct GgufFile {
  struct Tensor {
    std::vector<uint64_t> dims;  // innermost first, as in the file
    uint32_t type = 0;
    const char* data = nullptr;
  };
  std::string bytes;
  std::map<std::string, std::string> texts;  // strings
  std::map<std::string, double> numbers;     // numbers and bools
  std::map<std::string, std::vector<std::string>> lists;
  std::map<std::string, Tensor> tensors;
};

class GgufReader {
 public:
  explicit GgufReader(const std::filesystem::path& path) { file_.bytes = base::read_file(path); }

  GgufFile read() {
    CHECK(file_.bytes.substr(0, 4) == "GGUF");
    at_ = 4;
    CHECK(get<uint32_t>() == 3);
    const auto num_tensors = get<uint64_t>(), num_fields = get<uint64_t>();
    for (uint64_t i = 0; i < num_fields; ++i) {
      const std::string key = text();
      read_value(key, get<uint32_t>());
    }
    std::map<std::string, uint64_t> offsets;
    for (uint64_t i = 0; i < num_tensors; ++i) {
      const std::string name = text();
      GgufFile::Tensor& tensor = file_.tensors[name];
      tensor.dims.resize(get<uint32_t>());
      for (uint64_t& dim : tensor.dims) dim = get<uint64_t>();
      tensor.type = get<uint32_t>();
      offsets[name] = get<uint64_t>();
      CHECK(offsets[name] % 32 == 0);
    }
    const uint64_t begin = (at_ + 31) / 32 * 32;
    for (auto& [name, tensor] : file_.tensors) {
      CHECK(begin + offsets[name] < file_.bytes.size());
      tensor.data = file_.bytes.data() + begin + offsets[name];
    }
    return std::move(file_);
  }

 private:
  template <typename T>
  T get() {
    CHECK(at_ + sizeof(T) <= file_.bytes.size());
    T value;
    std::memcpy(&value, file_.bytes.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  std::string text() {
    const auto size = get<uint64_t>();
    CHECK(at_ + size <= file_.bytes.size());
    at_ += size;
    return file_.bytes.substr(at_ - size, size);
  }
  void read_value(const std::string& key, uint32_t type) {
    if (type == 4) file_.numbers[key] = get<uint32_t>();
    if (type == 5) file_.numbers[key] = get<int32_t>();
    if (type == 6) file_.numbers[key] = get<float>();
    if (type == 7) file_.numbers[key] = get<bool>();
    if (type == 8) file_.texts[key] = text();
    if (type == 9) {
      const auto element = get<uint32_t>();
      const auto count = get<uint64_t>();
      for (uint64_t i = 0; i < count; ++i)
        file_.lists[key].push_back(element == 8 ? text() : std::to_string(get<int32_t>()));
    }
    CHECK(type >= 4 && type <= 9, "{} has type {}", key, type);
  }

  GgufFile file_;
  size_t at_ = 0;
};

inline GgufFile read_gguf(const std::filesystem::path& path) { return GgufReader(path).read(); }

}  // namespace fathom::model
