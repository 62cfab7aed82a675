#include "pretrain/event_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <optional>

#include "pretrain/test_data.h"

namespace fathom::pretrain {
namespace {

namespace fs = std::filesystem;

// A reader of its own: nothing of the writer's code, the CRC bit by bit.
uint32_t crc_by_bits(std::string_view bytes) {
  uint32_t crc = 0xffffffff;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int i = 0; i < 8; ++i) crc = crc & 1 ? (crc >> 1) ^ 0x82f63b78 : crc >> 1;
  }
  return ~crc;
}

uint32_t masked_by_hand(std::string_view bytes) {
  const uint32_t crc = crc_by_bits(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

template <typename T>
T take(std::string_view& bytes) {
  EXPECT_GE(bytes.size(), sizeof(T));
  T value{};
  std::memcpy(&value, bytes.data(), std::min(sizeof(T), bytes.size()));
  bytes.remove_prefix(std::min(sizeof(T), bytes.size()));
  return value;
}

std::string_view take_bytes(std::string_view& bytes, size_t count) {
  EXPECT_GE(bytes.size(), count);
  const std::string_view part = bytes.substr(0, count);
  bytes.remove_prefix(part.size());
  return part;
}

uint64_t take_varint(std::string_view& bytes) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const auto byte = take<uint8_t>(bytes);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  ADD_FAILURE() << "a varint of more than ten bytes";
  return value;
}

struct Field {
  uint64_t number = 0;
  uint64_t value = 0;  // of a varint or the bits of a fixed one
  std::string_view bytes;
};

std::vector<Field> fields_of(std::string_view message) {
  std::vector<Field> fields;
  while (!message.empty()) {
    const uint64_t tag = take_varint(message);
    Field field{tag >> 3, 0, {}};
    switch (tag & 7) {
      case 0:
        field.value = take_varint(message);
        break;
      case 1:
        field.value = take<uint64_t>(message);
        break;
      case 2:
        field.bytes = take_bytes(message, take_varint(message));
        break;
      case 5:
        field.value = take<uint32_t>(message);
        break;
      default:
        ADD_FAILURE() << "wire type " << (tag & 7);
        return fields;
    }
    fields.push_back(field);
  }
  return fields;
}

struct Event {
  double wall_time = 0;
  std::optional<uint64_t> step;
  std::string file_version;
  std::map<std::string, float> scalars;
};

Event parse_event(std::string_view message) {
  Event event;
  for (const Field& field : fields_of(message)) {
    if (field.number == 1) event.wall_time = std::bit_cast<double>(field.value);
    if (field.number == 2) event.step = field.value;
    if (field.number == 3) event.file_version = field.bytes;
    if (field.number != 5) continue;
    for (const Field& value : fields_of(field.bytes)) {
      EXPECT_EQ(value.number, 1u);
      std::string tag;
      for (const Field& part : fields_of(value.bytes)) {
        if (part.number == 1) tag = part.bytes;
        if (part.number == 2)
          event.scalars[tag] = std::bit_cast<float>(static_cast<uint32_t>(part.value));
      }
    }
  }
  return event;
}

std::vector<Event> read_events(const fs::path& path) {
  const std::string file = base::read_file(path);
  std::string_view rest = file;
  std::vector<Event> events;
  while (!rest.empty()) {
    const std::string_view length_bytes = rest.substr(0, 8);
    const auto length = take<uint64_t>(rest);
    EXPECT_EQ(take<uint32_t>(rest), masked_by_hand(length_bytes));
    const std::string_view data = take_bytes(rest, length);
    EXPECT_EQ(take<uint32_t>(rest), masked_by_hand(data));
    events.push_back(parse_event(data));
  }
  return events;
}

TEST(Crc32c, IsThePublishedOne) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);            // the catalogue's check value
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(masked_crc32c("123456789"), masked_by_hand("123456789"));
}

TEST(EventFile, AReaderOfItsOwnFindsEveryNumber) {
  const fs::path folder = empty_folder("events");
  EventFile file(folder, {}, 1.7e9);
  file.append({{"step", 1}, {"tokens", 4096.0}, {"seconds", 2.5}, {"loss", 4.25}, {"lr", 1e-3}});
  file.append({{"step", 2}, {"skipped", true}});  // no number: no event
  file.append({{"step", 300}, {"recall", {0.5, 0.75}}});
  EXPECT_EQ(file.path().filename(), "events.out.tfevents.1700000000.fathom");
  const auto events = read_events(file.path());
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0].file_version, "brain.Event:2");
  EXPECT_EQ(events[0].wall_time, 1.7e9);
  EXPECT_EQ(events[1].step, 1u);
  EXPECT_EQ(events[1].wall_time, 1.7e9 + 2.5);
  EXPECT_EQ(events[1].scalars,
            (std::map<std::string, float>{
                {"loss", 4.25f}, {"lr", 1e-3f}, {"seconds", 2.5f}, {"tokens", 4096}}));
  EXPECT_EQ(events[2].step, 300u);
  EXPECT_EQ(events[2].wall_time, 1.7e9 + 2.5);  // a validation's line names no time
  EXPECT_EQ(events[2].scalars,
            (std::map<std::string, float>{{"recall/0", 0.5f}, {"recall/1", 0.75f}}));
}

// A run that goes on writes what stands in its metrics again, and no step twice.
TEST(EventFile, ReplacesTheFileOfTheRunThatItGoesOnWith) {
  const fs::path folder = empty_folder("events_again");
  {
    EventFile first(folder, {}, 100);
    for (int step = 1; step <= 3; ++step) first.append({{"step", step}, {"loss", step}});
  }
  base::write_file_atomically(folder / "notes.txt", "not ours");
  EventFile second(folder, {{{"step", 1}, {"seconds", 7.0}, {"loss", 1}}}, 200);
  second.append({{"step", 2}, {"loss", 2}});
  const auto events = read_events(second.path());
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[1].wall_time, 207);
  EXPECT_EQ(events[2].step, 2u);
  EXPECT_FALSE(fs::exists(folder / "events.out.tfevents.0000000100.fathom"));
  EXPECT_TRUE(fs::exists(folder / "notes.txt"));
}

}  // namespace
}  // namespace fathom::pretrain
