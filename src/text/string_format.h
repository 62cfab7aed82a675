// JSON Schema's "format" of strings.
#pragma once

#include <string>
#include <string_view>

namespace fathom::text {

inline constexpr std::string_view kKnownFormats =
    "date-time, date, time, duration, email, hostname, ipv4, ipv6, uri or uuid";

// The pattern (pattern.h) of strings that have this format, or empty where it is not known. Dates
// and times are RFC 3339's, of years 1 to 9999 and without leap seconds; durations ISO 8601's;
// mailboxes are unquoted. Names have at most three labels, or eight of at most 30 characters, which
// keeps them below 253.
std::string pattern_of_format(std::string_view format);

}  // namespace fathom::text
