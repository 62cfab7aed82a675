#include "model/safetensors.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/json.h"

namespace fathom::model {
namespace {

struct DTypeInfo {
  DType dtype;
  const char* name;
  size_t num_bytes;
};

constexpr DTypeInfo kDTypes[] = {
    {DType::kF32, "F32", 4},        {DType::kF16, "F16", 2}, {DType::kBF16, "BF16", 2},
    {DType::kF8E4M3, "F8_E4M3", 1}, {DType::kI32, "I32", 4}, {DType::kI64, "I64", 8},
    {DType::kU8, "U8", 1},          {DType::kU16, "U16", 2},
};

const DTypeInfo& info(DType dtype) {
  return *std::find_if(std::begin(kDTypes), std::end(kDTypes),
                       [&](const DTypeInfo& i) { return i.dtype == dtype; });
}

constexpr uint64_t kMostHeaderBytes = 100'000'000;

DType parse_dtype(const Json& value, const std::string& where) {
  for (const DTypeInfo& i : kDTypes)
    if (value == i.name) return i.dtype;
  fail("{}: dtype {} is not supported; expected F32, F16, BF16, F8_E4M3, I32, I64, U8 or U16",
       where, value.dump());
}

struct Placed {
  TensorView view;
  uint64_t begin = 0, end = 0;
};

// One header entry: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}.
Placed parse_entry(const Json& entry, uint64_t data_bytes, const std::string& where) {
  if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") ||
      !entry.contains("data_offsets"))
    fail("{}: header entry must hold dtype, shape and data_offsets", where);
  Placed placed;
  placed.view.dtype = parse_dtype(entry["dtype"], where);
  const Json &shape = entry["shape"], &offsets = entry["data_offsets"];
  if (!shape.is_array()) fail("{}: shape is {}; expected an array of sizes", where, shape.dump());
  uint64_t count = 1;
  for (const Json& size : shape) {
    if (!size.is_number_unsigned() && !(size.is_number_integer() && size.get<int64_t>() >= 0))
      fail("{}: shape is {}; expected sizes of at least 0", where, shape.dump());
    const auto value = size.get<uint64_t>();
    if (value != 0 && count > (uint64_t{1} << 48) / value)
      fail("{}: shape {} is too large", where, shape.dump());
    count *= value;
    placed.view.shape.push_back(static_cast<int64_t>(value));
  }
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned())
    fail("{}: data_offsets is {}; expected two byte positions", where, offsets.dump());
  placed.begin = offsets[0].get<uint64_t>();
  placed.end = offsets[1].get<uint64_t>();
  if (placed.begin > placed.end || placed.end > data_bytes)
    fail(
        "{}: data_offsets [{}, {}] lie outside the file's {} bytes of data; the file is truncated "
        "or its header is wrong",
        where, placed.begin, placed.end, data_bytes);
  if (placed.end - placed.begin != placed.view.num_bytes())
    fail("{}: {} of shape {} takes {} bytes but data_offsets span {}", where,
         dtype_name(placed.view.dtype), shape.dump(), placed.view.num_bytes(),
         placed.end - placed.begin);
  return placed;
}

// Tensors must follow one another without gaps or overlap and fill the data.
void check_tiling(std::vector<std::pair<std::string, Placed>> all, uint64_t data_bytes,
                  const std::string& path) {
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second.begin, a.second.end) < std::pair(b.second.begin, b.second.end);
  });
  uint64_t at = 0;
  for (const auto& [name, placed] : all) {
    if (placed.begin != at)
      fail(
          "{}: tensor {} begins at byte {} of the data; expected {} (tensors overlap or leave a "
          "gap)",
          path, name, placed.begin, at);
    at = placed.end;
  }
  if (at != data_bytes)
    fail("{}: tensors end at byte {} of {} bytes of data", path, at, data_bytes);
}

}  // namespace

size_t dtype_bytes(DType dtype) { return info(dtype).num_bytes; }
const char* dtype_name(DType dtype) { return info(dtype).name; }

int64_t TensorView::num_elements() const {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

Safetensors Safetensors::open(const std::filesystem::path& path) {
  Safetensors result;
  result.file_ = base::MappedFile::open(path);
  const auto bytes = result.file_->bytes();
  const std::string name = path.string();
  if (bytes.size() < 8)
    fail("{}: {} bytes long; a safetensors file begins with an 8-byte header length", name,
         bytes.size());
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > kMostHeaderBytes || header_bytes > bytes.size() - 8)
    fail(
        "{}: header length {} does not fit the file's {} bytes; the file is truncated or not "
        "safetensors",
        name, header_bytes, bytes.size());
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
  const Json header = base::parse_json(text, name + ": header", base::DuplicateKeys::kRefused);
  if (!header.is_object()) fail("{}: header is not a JSON object", name);
  const std::byte* data = bytes.data() + 8 + header_bytes;
  const uint64_t data_bytes = bytes.size() - 8 - header_bytes;
  std::vector<std::pair<std::string, Placed>> all;
  for (const auto& [key, entry] : header.items()) {
    if (key == "__metadata__") {
      for (const auto& [name_, value] : entry.items())
        result.metadata_[name_] = value.is_string() ? value.get<std::string>() : value.dump();
      continue;
    }
    all.emplace_back(key, parse_entry(entry, data_bytes, name + ": tensor " + key));
    all.back().second.view.data = data + all.back().second.begin;
    result.tensors_[key] = all.back().second.view;
  }
  check_tiling(std::move(all), data_bytes, name);
  return result;
}

const TensorView& Safetensors::at(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) fail("{}: there is no tensor {}", file_->path().string(), name);
  return it->second;
}

void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const auto& [name, view] : tensors) {
    header[name] = {{"dtype", dtype_name(view.dtype)},
                    {"shape", view.shape},
                    {"data_offsets", {offset, offset + view.num_bytes()}}};
    offset += view.num_bytes();
  }
  std::string text = header.dump();
  text.append((64 - (8 + text.size()) % 64) % 64, ' ');
  base::AtomicFile file(path);
  const uint64_t header_bytes = text.size();
  file.write(&header_bytes, 8);
  file.write(text);
  for (const auto& [name, view] : tensors) file.write(view.data, view.num_bytes());
  file.commit();
}

}  // namespace fathom::model
