#include "base/json_lines.h"

#include <vector>

namespace fathom::base {
namespace {

// An object or list that is open.
struct Open {
  std::string path;
  bool is_list = false;
  int64_t num_entries = 0;
};

// The string that begins with the quote at `at`, without its quotes, as written; `at` moves behind.
std::string_view take_string(std::string_view text, size_t& at) {
  const size_t begin = ++at;
  while (at < text.size() && text[at] != '"') at += text[at] == '\\' ? 2 : 1;
  return text.substr(begin, at++ - begin);
}

}  // namespace

std::map<std::string, int64_t> json_lines(std::string_view text) {
  std::map<std::string, int64_t> lines;
  std::vector<Open> open;
  std::string path;          // of the value that comes next
  bool expects_key = false;  // the next string is a key
  int64_t line = 1;
  const auto enter_entry = [&] {
    if (open.empty() || !open.back().is_list) return;
    path = open.back().path + "[" + std::to_string(open.back().num_entries++) + "]";
    lines[path] = line;
  };
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    if (c == '"') {
      if (!expects_key) enter_entry();
      const std::string_view content = take_string(text, at);
      if (!expects_key) continue;
      path = open.back().path + (open.back().path.empty() ? "" : ".") + std::string(content);
      lines[path] = line;
      expects_key = false;
      continue;
    }
    if (c == '\n') ++line;
    if (c == '{' || c == '[') {
      enter_entry();
      open.push_back({path, c == '[', 0});
      expects_key = c == '{';
    } else if (c == '}' || c == ']') {
      open.pop_back();
      expects_key = false;
    } else if (c == ',') {
      expects_key = !open.back().is_list;
    } else if (c == '-' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z')) {
      enter_entry();
      at = text.find_first_of(",]} \t\r\n", at);
      if (at == std::string_view::npos) break;
      continue;
    }
    ++at;
  }
  return lines;
}

}  // namespace fathom::base
