#include "model/gguf.h"

#include <array>
#include <bit>
#include <type_traits>

#include "base/check.h"
#include "base/file.h"

namespace fathom::model {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint64_t kAlignment = 32;  // of each tensor's data; what readers take as the default

enum class ValueType : uint32_t {
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
};

class Header {
 public:
  template <typename T>
  requires std::is_trivially_copyable_v<T>
  void put(T value) { bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value)); }
  void put(const std::string& text) {
    put<uint64_t>(text.size());
    bytes_ += text;
  }
  void put(const GgufField& field) {
    put(field.key);
    std::visit([this](const auto& value) { put_typed(value); }, field.value);
  }
  void pad() { bytes_.append((kAlignment - bytes_.size() % kAlignment) % kAlignment, '\0'); }
  const std::string& bytes() const { return bytes_; }

 private:
  static ValueType type_of(uint32_t) { return ValueType::kUint32; }
  static ValueType type_of(int32_t) { return ValueType::kInt32; }
  static ValueType type_of(float) { return ValueType::kFloat32; }
  static ValueType type_of(bool) { return ValueType::kBool; }
  static ValueType type_of(const std::string&) { return ValueType::kString; }

  template <typename T>
  void put_typed(const T& value) {
    put(type_of(value));
    put(value);
  }
  template <typename T>
  void put_typed(const std::vector<T>& values) {
    put(ValueType::kArray);
    put(type_of(T()));
    put<uint64_t>(values.size());
    for (const T& value : values) put(value);
  }

  std::string bytes_;
};

uint64_t aligned(uint64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

Header make_header(std::span<const GgufField> fields, std::span<const GgufTensor> tensors) {
  Header header;
  header.put(std::array{'G', 'G', 'U', 'F'});
  header.put<uint32_t>(3);
  header.put<uint64_t>(tensors.size());
  header.put<uint64_t>(fields.size());
  for (const GgufField& field : fields) header.put(field);
  uint64_t offset = 0;
  for (const GgufTensor& tensor : tensors) {
    header.put(tensor.name);
    header.put(static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i-- > 0;)
      header.put(static_cast<uint64_t>(tensor.shape[i]));
    header.put(tensor.type);
    header.put(offset);
    offset += aligned(tensor.num_bytes());
  }
  header.pad();
  return header;
}

}  // namespace

size_t GgufTensor::num_bytes() const {
  size_t count = type == GgufType::kF32 ? 4 : 2;
  for (const int64_t size : shape) count *= static_cast<size_t>(size);
  return count;
}

void write_gguf(const std::filesystem::path& path, std::span<const GgufField> fields,
                std::span<const GgufTensor> tensors) {
  base::AtomicFile file(path);
  file.write(make_header(fields, tensors).bytes());
  for (const GgufTensor& tensor : tensors) {
    uint64_t written = 0;
    tensor.write([&](const void* data, size_t num_bytes) {
      file.write(data, num_bytes);
      written += num_bytes;
    });
    CHECK(written == tensor.num_bytes(), "{}: {} bytes of {}", tensor.name, written,
          tensor.num_bytes());
    file.write(std::string(aligned(written) - written, '\0'));
  }
  file.commit();
}

}  // namespace fathom::model
