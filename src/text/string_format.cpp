#include "text/string_format.h"

#include <string>

#include "base/check.h"

namespace fathom::text {
namespace {

std::string date_pattern() {
  const std::string year = "(?:[1-9]\\d{3}|0[1-9]\\d\\d|00[1-9]\\d|000[1-9])";
  const std::string leap_year =
      "(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)";
  return "(?:" + year +
         "-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|"
         "02-(?:0[1-9]|1\\d|2[0-8]))|" +
         leap_year + "-02-29)";
}

std::string time_pattern() {
  const std::string hour_and_minute = "(?:[01]\\d|2[0-3]):[0-5]\\d";
  return hour_and_minute + ":[0-5]\\d(?:\\.\\d{1,9})?(?:Z|[+-]" + hour_and_minute + ")";
}

// Units follow one another without a gap.
std::string duration_pattern() {
  const auto chain = [](std::string_view units) {
    std::string from_here, any;
    for (size_t i = units.size(); i-- > 0;) {
      from_here = fmt::format("\\d{{1,9}}{}{}", units[i],
                              from_here.empty() ? "" : "(?:" + from_here + ")?");
      any = from_here + (any.empty() ? "" : "|" + any);
    }
    return "(?:" + any + ")";
  };
  const std::string time = "T" + chain("HMS");
  return "P(?:\\d{1,9}W|" + chain("YMD") + "(?:" + time + ")?|" + time + ")";
}

std::string label(int length) {
  return fmt::format("[A-Za-z0-9](?:[A-Za-z0-9-]{{0,{}}}[A-Za-z0-9])?", length - 2);
}

// A label of at most 63 characters, then between `fewest` and `most` more of at most `length`.
std::string labels(int fewest, int most, int length) {
  return fmt::format("{}(?:\\.{}){{{},{}}}", label(63), label(length), fewest, most);
}

// At most 253 characters.
std::string hostname_pattern() { return "(?:" + labels(0, 2, 63) + "|" + labels(0, 6, 30) + ")"; }

// At most 64 characters, "@", and at most 189.
std::string email_pattern() {
  const std::string atom = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]";
  std::string local = atom + "{1,64}";
  for (const auto& [num_dots, length] : {std::pair(1, 31), std::pair(2, 20), std::pair(3, 15)})
    local += fmt::format("|{0}{{1,{1}}}(?:\\.{0}{{1,{1}}}){{{2}}}", atom, length, num_dots);
  return "(?:" + local + ")@(?:" + labels(1, 2, 62) + "|" + labels(1, 6, 20) + ")";
}

std::string ipv4_pattern() {
  const std::string byte = "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
  return byte + "(?:\\." + byte + "){3}";
}

// Eight groups, or fewer around one "::"; the last two may be an IPv4 address.
std::string ipv6_pattern() {
  const std::string group = "[0-9A-Fa-f]{1,4}";
  const std::string last_two = "(?:" + group + ":" + group + "|" + ipv4_pattern() + ")";
  std::string all = "(?:(?:" + group + ":){6}" + last_two;
  for (int num_after = 0; num_after <= 7; ++num_after) {
    const int most_before = 7 - num_after;
    const std::string before =
        most_before == 0 ? ""
                         : fmt::format("(?:{}(?::{}){{0,{}}})?", group, group, most_before - 1);
    const std::string after = num_after == 0 ? ""
                              : num_after == 1
                                  ? group
                                  : fmt::format("(?:{}:){{{}}}{}", group, num_after - 2, last_two);
    all += "|" + before + "::" + after;
  }
  return all + ")";
}

std::string uuid_pattern() { return "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"; }

// With a scheme; where there is an authority, its host is a name, an IPv4 or an IPv6 address.
std::string uri_pattern() {
  const std::string unreserved = "[A-Za-z0-9._~!$&'()*+,;=-]", escaped = "%[0-9A-Fa-f]{2}";
  const std::string user = "(?:(?:" + unreserved + "|:|" + escaped + ")*@)?";
  const std::string host =
      "(?:(?:" + unreserved + "|" + escaped + ")*|\\[" + ipv6_pattern() + "\\])";
  const std::string character = "(?:" + unreserved + "|[:@]|" + escaped + ")";
  const std::string path = "(?:/" + character + "*)*";
  const std::string rest = "(?:" + character + "|[/?])*";
  return "[A-Za-z][A-Za-z0-9+.-]*:(?://" + user + host + "(?::\\d*)?" + path + "|(?:/?" +
         character + "+" + path + "|/)?)(?:\\?" + rest + ")?(?:#" + rest + ")?";
}

}  // namespace

std::string pattern_of_format(std::string_view format) {
  const auto whole = [](const std::string& pattern) { return "^(?:" + pattern + ")$"; };
  if (format == "date-time") return whole(date_pattern() + "T" + time_pattern());
  if (format == "date") return whole(date_pattern());
  if (format == "time") return whole(time_pattern());
  if (format == "duration") return whole(duration_pattern());
  if (format == "email") return whole(email_pattern());
  if (format == "hostname") return whole(hostname_pattern());
  if (format == "ipv4") return whole(ipv4_pattern());
  if (format == "ipv6") return whole(ipv6_pattern());
  if (format == "uri") return whole(uri_pattern());
  if (format == "uuid") return whole(uuid_pattern());
  return "";
}

}  // namespace fathom::text
