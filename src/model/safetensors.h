// The safetensors file format: an 8-byte length, a JSON header, then the tensors' bytes.
// https://huggingface.co/docs/safetensors
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"

namespace fathom::model {

enum class DType { kF32, kF16, kBF16, kF8E4M3, kI32, kI64, kU8, kU16 };

size_t dtype_bytes(DType dtype);
const char* dtype_name(DType dtype);  // as in the header: "F8_E4M3"

struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;  // into the map; may be misaligned for the dtype

  int64_t num_elements() const;
  size_t num_bytes() const { return static_cast<size_t>(num_elements()) * dtype_bytes(dtype); }
};

// A mapped file. open() validates the whole header: lengths, types, shapes, that the tensors lie in
// the file and tile it without overlap. Throws Error naming the file, the tensor and what is wrong.
class Safetensors {
 public:
  static Safetensors open(const std::filesystem::path& path);
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  // Throws Error naming the file if there is no such tensor.
  const TensorView& at(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::shared_ptr<const base::MappedFile>& file() const { return file_; }

 private:
  std::shared_ptr<const base::MappedFile> file_;
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

struct NamedTensor {
  std::string name;
  TensorView view;
};

// Written to a temporary name, then renamed. Tensors keep their order; data start at a multiple
// of 64.
void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace fathom::model
