// Where the keys of a JSON text stand, for errors that name the line at fault.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace fathom::base {

// The line, from 1, of every key and list entry, by its path: "training.steps", "corpus[3].kind".
// `text` must be valid JSON; of a key that stands twice the last counts.
std::map<std::string, int64_t> json_lines(std::string_view text);

}  // namespace fathom::base
