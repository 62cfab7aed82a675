// JSON is nlohmann's, with objects that keep their order: chat prompts print keys as they came.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

namespace fathom {

using Json = nlohmann::ordered_json;

namespace base {

enum class DuplicateKeys { kAccepted, kRefused };

// `source` names the text in the Error: "FILE: not valid JSON at line L, column C: ...".
Json parse_json(std::string_view text, std::string_view source,
                DuplicateKeys duplicates = DuplicateKeys::kAccepted);
// Refuses an object that gives a key twice: one of the two would be lost without a word.
Json read_json_file(const std::filesystem::path& path);
// For large objects: these look keys up in a tree, where Json goes through them one by one.
nlohmann::json parse_sorted_json(std::string_view text, std::string_view source);

}  // namespace base
}  // namespace fathom
