#include "model/verify.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <cmath>
#include <cstring>
#include <map>
#include <sstream>
#include <string>

#include "base/check.h"
#include "base/file.h"
#include "model/safetensors.h"

namespace fathom::model {
namespace {

std::string sha256(const std::filesystem::path& path) {
  const auto file = base::MappedFile::open(path);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  CHECK(EVP_Digest(file->bytes().data(), file->bytes().size(), digest, &size, EVP_sha256(),
                   nullptr) == 1);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

// Sums by file name, in lower case; other programs write them in upper case, end lines as DOS does,
// or put ./ before names.
std::map<std::string, std::string> read_sums(const std::filesystem::path& list) {
  std::map<std::string, std::string> sums;
  std::istringstream lines(base::read_file(list));
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.ends_with('\r')) line.pop_back();
    std::transform(line.begin(), line.begin() + std::min<int64_t>(64, std::ssize(line)),
                   line.begin(), [](unsigned char c) { return std::tolower(c); });
    if (line.size() > 68 && line.compare(66, 2, "./") == 0) line.erase(66, 2);
    const bool is_good = line.size() > 66 && line.find_first_not_of("0123456789abcdef") == 64 &&
                         line[64] == ' ' && (line[65] == ' ' || line[65] == '*') &&
                         line.find('/') == std::string::npos;
    if (!is_good)
      fail("{}: line {} is not 64 hex digits, two spaces and a file name", list.string(), number);
    sums[line.substr(66)] = line.substr(0, 64);
  }
  return sums;
}

void check_sums(const std::filesystem::path& folder,
                const std::map<std::string, std::string>& sums) {
  for (const auto& [name, expected] : sums) {
    const std::string found = sha256(folder / name);
    if (found != expected)
      fail("{}: its SHA-256 is {}, {} says {}; the file is damaged or was changed, get it again",
           (folder / name).string(), found, kChecksumFile, expected);
  }
}

template <typename Bits>
bool are_finite(const TensorView& view, Bits exponent) {
  for (int64_t i = 0; i < view.num_elements(); ++i) {
    Bits bits;
    std::memcpy(&bits, view.data + i * static_cast<int64_t>(sizeof bits), sizeof bits);
    if ((bits & exponent) == exponent) return false;
  }
  return true;
}

bool is_sound(const TensorView& view) {
  switch (view.dtype) {
    case DType::kF32:
      return are_finite<uint32_t>(view, 0x7F800000);
    case DType::kF16:
      return are_finite<uint16_t>(view, 0x7C00);
    case DType::kBF16:
      return are_finite<uint16_t>(view, 0x7F80);
    case DType::kF8E4M3:
      return are_finite<uint8_t>(view, 0x7F);  // its only NaN
    default:
      return true;
  }
}

bool are_positive(const TensorView& view) {
  if (view.dtype != DType::kF32) return true;
  for (int64_t i = 0; i < view.num_elements(); ++i) {
    float value;
    std::memcpy(&value, view.data + i * 4, sizeof value);
    if (!(value > 0)) return false;
  }
  return true;
}

void check_values(const std::filesystem::path& path) {
  const auto file = Safetensors::open(path);
  for (const auto& [name, view] : file.tensors()) {
    if (!is_sound(view))
      fail("{}: tensor {} holds values that are not finite; the file is damaged, get it again",
           path.string(), name);
    if (name.ends_with("_scale_inv") && !are_positive(view))
      fail("{}: tensor {} holds factors that are not positive; the file is damaged, get it again",
           path.string(), name);
  }
}

}  // namespace

void verify_checkpoint(const std::filesystem::path& folder) {
  const bool has_list = std::filesystem::exists(folder / kChecksumFile);
  std::map<std::string, std::string> sums;
  if (has_list) sums = read_sums(folder / kChecksumFile);
  check_sums(folder, sums);
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.ends_with(".safetensors")) continue;
    if (has_list && !sums.contains(name))
      fail("{}: is not in {}; expected every file of weights there", entry.path().string(),
           kChecksumFile);
    check_values(entry.path());
  }
}

void add_checksums(const std::filesystem::path& folder, std::span<const std::string> names) {
  const auto list = folder / kChecksumFile;
  std::map<std::string, std::string> sums;
  if (std::filesystem::exists(list)) sums = read_sums(list);
  for (const std::string& name : names) sums[name] = sha256(folder / name);
  std::string lines;
  for (const auto& [name, sum] : sums) lines += sum + "  " + name + "\n";
  base::write_file_atomically(list, lines);
}

}  // namespace fathom::model
