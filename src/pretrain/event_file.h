// A run's metrics as TensorBoard reads them: FOLDER/events.out.tfevents.SECONDS.fathom, records of
// TFRecord's framing (length, masked CRC-32C of the length, data, masked CRC-32C of the data), each
// one Event message in protobuf's encoding.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"

namespace fathom::pretrain {

// CRC-32C (Castagnoli), and as TFRecord stores it: rotated right by 15 bits, plus a constant.
uint32_t crc32c(std::string_view bytes);
uint32_t masked_crc32c(std::string_view bytes);

struct Scalar {
  std::string tag;
  float value;
};

// The numbers of one line of metrics.jsonl, by their keys; of a list one by one, "key/0" and so on.
// Without the keys that only say when: step, tokens, seconds.
std::vector<Scalar> scalars_of(const Json& metrics);

class EventFile {
 public:
  // Replaces the folder's event files by a new one with `lines`, those of metrics.jsonl. An event's
  // wall time is `start` (seconds since 1970) plus the seconds of training that its line names, or
  // the last before it did.
  EventFile(const std::filesystem::path& folder, const std::vector<Json>& lines, double start);

  void append(const Json& metrics);

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  double start_;
  double seconds_ = 0;
};

}  // namespace fathom::pretrain
