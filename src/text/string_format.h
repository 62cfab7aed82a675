// JSON Schema's "format" of strings.
#pragma once

#include <string>
#include <string_view>

namespace fathom::text {

inline constexpr std::string_view kKnownFormats =
    "date-time, date, time, duration, email, hostname, ipv4, ipv6, uri or uuid";

// The pattern (pattern.h) of strings that have this format, or empty where it is not known. Not all
// of them: dates and times are RFC 3339's with capitals, of years 1 to 9999, without leap seconds,
// fractions of at most 9 digits; durations are ISO 8601's with numbers of at most 9 digits. To keep
// to the lengths allowed, hostnames have at most three labels, or after the first six of at most 30
// characters; mailboxes are unquoted, with at most four atoms (of 64, 31, 20 or 15 characters, by
// their number) and a domain of at most three labels, or after the first six of at most 20.
std::string pattern_of_format(std::string_view format);

}  // namespace fathom::text
