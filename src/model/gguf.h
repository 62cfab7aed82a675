// The GGUF file format (version 3), written only: keys with values, then tensors, little-endian.
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <variant>
#include <vector>

namespace fathom::model {

using GgufValue = std::variant<uint32_t, float, bool, std::string, std::vector<std::string>,
                               std::vector<int32_t>>;

struct GgufField {
  std::string key;
  GgufValue value;
};

enum class GgufType : uint32_t { kF32 = 0, kF16 = 1, kBF16 = 30 };

struct GgufTensor {
  using Sink = std::function<void(const void* data, size_t num_bytes)>;

  std::string name;
  std::vector<int64_t> shape;  // row-major, the outermost first (the file has it the other way)
  GgufType type = GgufType::kF32;
  std::function<void(const Sink&)> write;  // hands over all bytes, in order, in any pieces

  size_t num_bytes() const;
};

// Written to a temporary name, then renamed. Holds no tensor in memory: each is asked for its bytes
// when its turn comes. Throws Error on a full disk; CHECKs that a tensor gives as many bytes as its
// shape says.
void write_gguf(const std::filesystem::path& path, std::span<const GgufField> fields,
                std::span<const GgufTensor> tensors);

}  // namespace fathom::model
