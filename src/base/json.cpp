#include "base/json.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/file.h"

namespace fathom::base {
namespace {

// The library quotes what it read last, whatever the bytes are.
std::string printable(std::string_view text) {
  constexpr size_t kMostBytes = 200;
  std::string result;
  for (const char c : text.substr(0, kMostBytes + 1)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80)
      result += c;
    else
      result += fmt::format("\\x{:02x}", byte);
  }
  return result.size() <= kMostBytes ? result : result.substr(0, kMostBytes) + "...";
}

[[noreturn]] void fail_to_parse(const nlohmann::json::parse_error& error, std::string_view text,
                                std::string_view source) {
  const std::string_view before = text.substr(0, error.byte > 0 ? error.byte - 1 : 0);
  const auto line = std::count(before.begin(), before.end(), '\n') + 1;
  const auto column = before.size() - (before.rfind('\n') + 1) + 1;
  // The library's message opens with its own identifiers; the reason follows the second ": ".
  const std::string what = error.what();
  const size_t reason = what.find(": ", what.find("column"));
  fail("{}: not valid JSON at line {}, column {}: {}", source, line, column,
       printable(reason == std::string::npos ? what : what.substr(reason + 2)));
}

template <typename AnyJson>
AnyJson parse(std::string_view text, std::string_view source,
              const typename AnyJson::parser_callback_t& callback = nullptr) {
  try {
    return AnyJson::parse(text, callback);
  } catch (const nlohmann::json::parse_error& error) {
    fail_to_parse(error, text, source);
  } catch (const nlohmann::json::exception& error) {
    fail("{}: not valid JSON: {}", source, printable(error.what()));
  }
}

}  // namespace

Json parse_json(std::string_view text, std::string_view source, DuplicateKeys duplicates) {
  if (duplicates == DuplicateKeys::kAccepted) return parse<Json>(text, source);
  std::vector<std::set<std::string>> keys;  // of the objects that are open, innermost last
  return parse<Json>(text, source, [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second)
      fail("{}: key {} stands twice in one object", source, parsed.dump());
    return true;
  });
}

nlohmann::json parse_sorted_json(std::string_view text, std::string_view source) {
  return parse<nlohmann::json>(text, source);
}

Json read_json_file(const std::filesystem::path& path) {
  return parse_json(read_file(path), path.string(), DuplicateKeys::kRefused);
}

}  // namespace fathom::base
