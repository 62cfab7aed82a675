#include "pretrain/event_file.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>

#include "base/check.h"
#include "base/file.h"

namespace fathom::pretrain {
namespace {

constexpr std::string_view kPrefix = "events.out.tfevents.";

constexpr std::array<uint32_t, 256> make_crc_table() {
  constexpr uint32_t kPolynomial = 0x82f63b78;  // bits reversed
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? kPolynomial : 0);
    table[byte] = crc;
  }
  return table;
}
constexpr auto kCrcTable = make_crc_table();

// Fields of a protobuf message, written one behind another.
class Message {
 public:
  Message& varint(int field, uint64_t value) {
    tag(field, 0);
    raw_varint(value);
    return *this;
  }
  Message& fixed(int field, double value) {
    tag(field, 1);
    raw(std::bit_cast<uint64_t>(value));
    return *this;
  }
  Message& fixed(int field, float value) {
    tag(field, 5);
    raw(std::bit_cast<uint32_t>(value));
    return *this;
  }
  Message& bytes(int field, std::string_view value) {
    tag(field, 2);
    raw_varint(value.size());
    text_ += value;
    return *this;
  }
  const std::string& text() const { return text_; }

 private:
  void tag(int field, int wire_type) { raw_varint(static_cast<uint64_t>(field << 3 | wire_type)); }
  void raw_varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_ += static_cast<char>(0x80 | (value & 0x7f));
    text_ += static_cast<char>(value);
  }
  template <typename T>
  void raw(T value) {
    static_assert(std::endian::native == std::endian::little);
    char bytes[sizeof value];
    std::memcpy(bytes, &value, sizeof value);
    text_.append(bytes, sizeof value);
  }

  std::string text_;
};

// Field numbers of tensorflow's event.proto and summary.proto.
std::string scalar_event(double wall_time, int64_t step, const std::vector<Scalar>& scalars) {
  Message summary;
  for (const Scalar& scalar : scalars)
    summary.bytes(1, Message().bytes(1, scalar.tag).fixed(2, scalar.value).text());
  return Message()
      .fixed(1, wall_time)
      .varint(2, static_cast<uint64_t>(step))
      .bytes(5, summary.text())
      .text();
}

template <typename T>
std::string little_endian(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string framed(const std::string& event) {
  const std::string length = little_endian(static_cast<uint64_t>(event.size()));
  return length + little_endian(masked_crc32c(length)) + event +
         little_endian(masked_crc32c(event));
}

// The line's event as a record; empty where it has no numbers. Moves `seconds` on to the line's.
std::string record_of(const Json& metrics, double start, double& seconds) {
  seconds = metrics.value("seconds", seconds);
  const std::vector<Scalar> scalars = scalars_of(metrics);
  if (scalars.empty()) return "";
  return framed(scalar_event(start + seconds, metrics.value("step", int64_t{0}), scalars));
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xffffffff;
  for (const char c : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<uint8_t>(c)) & 0xff];
  return ~crc;
}

uint32_t masked_crc32c(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xa282ead8u;
}

std::vector<Scalar> scalars_of(const Json& metrics) {
  std::vector<Scalar> scalars;
  for (const auto& [key, value] : metrics.items()) {
    if (key == "step") continue;
    if (value.is_number()) scalars.push_back({key, value.get<float>()});
    if (!value.is_array()) continue;
    for (size_t i = 0; i < value.size(); ++i)
      if (value[i].is_number())
        scalars.push_back({fmt::format("{}/{}", key, i), value[i].get<float>()});
  }
  return scalars;
}

EventFile::EventFile(const std::filesystem::path& folder, const std::vector<Json>& lines,
                     double start)
    : start_(start) {
  std::filesystem::create_directories(folder);
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().filename().string().starts_with(kPrefix))
      std::filesystem::remove(entry.path());
  path_ = folder / fmt::format("{}{:010}.fathom", kPrefix, static_cast<int64_t>(start));
  std::string records = framed(Message().fixed(1, start).bytes(3, "brain.Event:2").text());
  for (const Json& line : lines) records += record_of(line, start_, seconds_);
  base::write_file_atomically(path_, records);
}

void EventFile::append(const Json& metrics) {
  const std::string record = record_of(metrics, start_, seconds_);
  std::ofstream file(path_, std::ios::app | std::ios::binary);
  file << record << std::flush;
  if (!file) fail("{}: cannot write; expected room on the disk", path_.string());
}

}  // namespace fathom::pretrain
