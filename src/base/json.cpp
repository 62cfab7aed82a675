#include "base/json.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/file.h"

namespace fathom::base {

Json parse_json(std::string_view text, std::string_view source) {
  try {
    return Json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    const std::string_view before = text.substr(0, error.byte > 0 ? error.byte - 1 : 0);
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    const auto column = before.size() - (before.rfind('\n') + 1) + 1;
    // The library's message opens with its own identifiers; the reason follows the second ": ".
    const std::string what = error.what();
    const size_t reason = what.find(": ", what.find("column"));
    fail("{}: not valid JSON at line {}, column {}: {}", source, line, column,
         reason == std::string::npos ? what : what.substr(reason + 2));
  } catch (const nlohmann::json::exception& error) {
    fail("{}: not valid JSON: {}", source, error.what());
  }
}

Json read_json_file(const std::filesystem::path& path) {
  return parse_json(read_file(path), path.string());
}

}  // namespace fathom::base
