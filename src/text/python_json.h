// JSON as Python's json module reads and writes it: the chat format's prompts hold what
// json.dumps(value, ensure_ascii=False) prints.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

namespace fathom::text {

// ", " and ": " between items, insertion order, floats by shortest repr with ".0", integers of any
// size; bytes that are not UTF-8 print as U+FFFD.
std::string python_json(const Json& value);

// Like base::parse_json, but integers beyond 64 bits keep their digits (as binary values, which
// python_json prints as they were written) instead of becoming doubles. More than 500 levels of
// nesting are an Error.
Json parse_json_exactly(std::string_view text, std::string_view source);

}  // namespace fathom::text
