// JSON is nlohmann's, with objects that keep their order: chat prompts print keys as they came.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

namespace fathom {

using Json = nlohmann::ordered_json;

namespace base {

// `source` names the text in the Error: "FILE: not valid JSON at line L, column C: ...".
Json parse_json(std::string_view text, std::string_view source);
Json read_json_file(const std::filesystem::path& path);

}  // namespace base
}  // namespace fathom
