// The byte-level alphabet of GPT-2: every byte is written as one printable character, so that a
// vocabulary of byte strings fits into JSON. Bytes 21-7E, A1-AC and AE-FF stand for themselves; the
// other 68, in order, become U+0100 and up (the space is U+0120).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace fathom::text {

std::string to_byte_level(std::string_view bytes);

// Nothing if `text` has a character outside the alphabet.
std::optional<std::string> from_byte_level(std::string_view text);

}  // namespace fathom::text
