// Markers in text that arrives in pieces: what has to be held back.
#pragma once

#include <algorithm>
#include <string_view>

namespace fathom::text {

// Length of the longest end of `text` that could be the beginning of `marker`, which is not empty.
inline size_t partial_marker(std::string_view text, std::string_view marker) {
  for (size_t length = std::min(text.size(), marker.size() - 1); length > 0; --length)
    if (text.ends_with(marker.substr(0, length))) return length;
  return 0;
}

}  // namespace fathom::text
