#include "text/markup_text.h"

#include <algorithm>
#include <cctype>
#include <optional>
#include <utility>
#include <vector>

#include "text/utf8.h"

namespace fathom::text {

namespace {

std::vector<std::string_view> split_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    lines.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\r") == std::string_view::npos;
}

size_t indent_of(std::string_view line) {
  return std::min(line.find_first_not_of(" \t"), line.size());
}

// A line of one repeated punctuation character, under or over a heading.
bool is_rule(std::string_view line) {
  while (!line.empty() && (line.back() == ' ' || line.back() == '\r')) line.remove_suffix(1);
  return line.size() >= 3 && std::string_view("=-~^\"'`#*+.:_").find(line[0]) != line.npos &&
         line.find_first_not_of(line[0]) == line.npos;
}

// What a role like :func:`~os.path.join` or a link `text <target>`_ shows.
std::string shown_name(std::string_view name) {
  const size_t angle = name.find(" <");
  if (angle != name.npos && name.ends_with('>')) return std::string(name.substr(0, angle));
  if (name.starts_with('~')) name.remove_prefix(std::min(name.rfind('.') + 1, name.size()));
  if (name.starts_with('!')) name.remove_prefix(1);
  return std::string(name);
}

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-'; }

// Drops ":role:" in front of a backquoted name, link targets and trailing underscores.
std::string rst_inline(std::string_view line) {
  std::string text;
  for (size_t i = 0; i < line.size();) {
    if (line.substr(i).starts_with("``")) {
      const size_t end = line.find("``", i + 2);
      if (end != line.npos) {
        text += line.substr(i, end + 2 - i);
        i = end + 2;
        continue;
      }
    }
    const size_t end = line[i] == '`' ? line.find('`', i + 1) : line.npos;
    if (end == line.npos) {
      text += line[i++];
      continue;
    }
    if (text.ends_with(':')) {
      size_t begin = text.size() - 1;
      while (begin > 0 && (is_word(text[begin - 1]) || text[begin - 1] == ':')) --begin;
      if (text[begin] == ':') text.resize(begin);
    }
    text += shown_name(line.substr(i + 1, end - i - 1));
    i = end + 1;
    while (i < line.size() && line[i] == '_') ++i;
  }
  return text;
}

// Directives whose body is text of the page; the body of any other directive is dropped with it.
bool has_readable_body(std::string_view directive) {
  for (const std::string_view name :
       {"note",           "warning",        "tip",          "important",      "caution",
        "hint",           "seealso",        "code-block",   "code",           "parsed-literal",
        "literalinclude", "function",       "class",        "method",         "attribute",
        "data",           "exception",      "versionadded", "versionchanged", "deprecated",
        "describe",       "doctest",        "classmethod",  "staticmethod",   "option",
        "envvar",         "decorator",      "module",       "highlights",     "admonition",
        "topic",          "impl-detail",    "c:function",   "c:type",         "c:macro",
        "opcode",         "productionlist", "sourcecode",   "testcode",       "rubric",
        "index"}) {
    if (directive == name) return true;
  }
  return false;
}

// Directives that show their argument: a function's signature, a note's first line.
bool shows_argument(std::string_view directive) {
  return has_readable_body(directive) && directive != "code-block" && directive != "code" &&
         directive != "literalinclude" && directive != "module" && directive != "index" &&
         directive != "sourcecode" && directive != "productionlist";
}

class RstText {
 public:
  explicit RstText(std::string_view rst) : lines_(split_lines(rst)) {}

  std::string convert() {
    while (next_ < lines_.size()) {
      const std::string_view line = lines_[next_++];
      const std::string_view content = line.substr(indent_of(line));
      if (content == ".." || content.starts_with(".. ")) {
        read_explicit_markup(indent_of(line), content);
      } else if (!is_rule(line)) {
        put(line);
      }
    }
    return std::move(text_);
  }

 private:
  void put(std::string_view line) {
    std::string shown = rst_inline(line);
    // A literal block follows; on its own the marker means nothing to a reader.
    if (shown.ends_with("::"))
      shown.resize(shown.size() - (is_blank(line.substr(0, line.size() - 2)) ? 2 : 1));
    text_ += shown;
    text_ += '\n';
  }

  // Comments, targets, footnotes and directives: ".. name:: argument", options, body.
  void read_explicit_markup(size_t indent, std::string_view content) {
    const size_t colons = content.find("::");
    std::string_view name, argument;
    if (colons != content.npos && colons > 3 && content.find(' ', 3) >= colons) {
      name = content.substr(3, colons - 3);
      argument = content.substr(colons + 2);
    }
    if (!has_readable_body(name)) {
      skip_body(indent);
      return;
    }
    if (shows_argument(name) && !is_blank(argument)) {
      put(std::string(indent, ' ') + std::string(argument.substr(indent_of(argument))));
    }
    while (next_ < lines_.size() && indent_of(lines_[next_]) > indent &&
           lines_[next_].substr(indent_of(lines_[next_])).starts_with(':')) {
      ++next_;
    }
  }

  void skip_body(size_t indent) {
    while (next_ < lines_.size() &&
           (is_blank(lines_[next_]) || indent_of(lines_[next_]) > indent)) {
      ++next_;
    }
    text_ += '\n';
  }

  std::vector<std::string_view> lines_;
  size_t next_ = 0;
  std::string text_;
};

std::optional<uint32_t> pod_entity(std::string_view name) {
  if (name == "lt") return '<';
  if (name == "gt") return '>';
  if (name == "verbar") return '|';
  if (name == "sol") return '/';
  if (name == "eacute") return 0xE9;
  if (name == "uuml") return 0xFC;
  if (name == "ouml") return 0xF6;
  if (name == "auml") return 0xE4;
  if (name == "copy") return 0xA9;
  return std::nullopt;
}

// L<text|target>, L<page/section>, L<"section">, L<url>.
std::string_view pod_link(std::string_view link) {
  const size_t bar = link.find('|');
  if (bar != link.npos) return link.substr(0, bar);
  if (link.starts_with('/')) link.remove_prefix(1);
  if (link.starts_with('"') && link.ends_with('"') && link.size() > 1) {
    return link.substr(1, link.size() - 2);
  }
  return link;
}

std::string pod_inline(std::string_view text);

// A formatting code at text[0]: "B<..>" or "C<< .. >>". Returns its length, or 0 if it isn't one.
size_t read_pod_code(std::string_view text, std::string* shown) {
  size_t num_angles = 0;
  while (1 + num_angles < text.size() && text[1 + num_angles] == '<') ++num_angles;
  if (num_angles == 0) return 0;
  const size_t begin = 1 + num_angles;
  size_t end = begin;
  if (num_angles == 1) {
    for (int depth = 1; end < text.size(); ++end) {
      if (text[end] == '<' && end > 0 && std::isupper(static_cast<unsigned char>(text[end - 1]))) {
        ++depth;
      }
      if (text[end] == '>' && --depth == 0) break;
    }
  } else {
    end = text.find(" " + std::string(num_angles, '>'), begin);
  }
  if (end >= text.size()) return 0;
  std::string_view inside = text.substr(begin, end - begin);
  const size_t length = end + num_angles + (num_angles > 1 ? 1 : 0);
  if (num_angles > 1) inside.remove_prefix(std::min(indent_of(inside), inside.size()));
  if (text[0] == 'E') {
    if (const auto code = pod_entity(inside)) append_utf8(shown, *code);
  } else if (text[0] == 'L') {
    *shown += pod_inline(pod_link(inside));
  } else if (text[0] != 'X' && text[0] != 'Z') {
    *shown += pod_inline(inside);
  }
  return length;
}

std::string pod_inline(std::string_view text) {
  std::string shown;
  while (!text.empty()) {
    const size_t length = text.size() > 2 && text[1] == '<' &&
                                  std::string_view("BCEFILSXZ").find(text[0]) != text.npos
                              ? read_pod_code(text, &shown)
                              : 0;
    if (length == 0) shown += text[0];
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return shown;
}

}  // namespace

std::string rst_to_text(std::string_view rst) { return RstText(rst).convert(); }

std::string pod_to_text(std::string_view pod) {
  const std::vector<std::string_view> lines = split_lines(pod);
  std::string text;
  bool is_pod = false;      // between a command and =cut
  bool is_foreign = false;  // between =begin and =end
  for (size_t i = 0; i < lines.size();) {
    if (is_blank(lines[i])) {
      ++i;
      continue;
    }
    // One paragraph: formatting codes may run over its lines.
    std::string paragraph;
    while (i < lines.size() && !is_blank(lines[i])) {
      paragraph += paragraph.empty() ? "" : "\n";
      paragraph += lines[i++];
    }
    if (paragraph[0] != '=') {
      if (!is_pod || is_foreign) continue;
      const bool is_verbatim = paragraph[0] == ' ' || paragraph[0] == '\t';
      text += (is_verbatim ? paragraph : pod_inline(paragraph)) + "\n\n";
      continue;
    }
    const std::string command = paragraph.substr(0, paragraph.find_first_of(" \t\n"));
    const std::string rest = paragraph.substr(std::min(command.size() + 1, paragraph.size()));
    is_pod = command != "=cut";
    if (command == "=begin") is_foreign = true;
    if (command == "=end") is_foreign = false;
    if (command.starts_with("=head")) text += pod_inline(rest) + "\n\n";
    if (command == "=item") text += (rest.starts_with('*') ? "" : "- ") + pod_inline(rest) + "\n\n";
  }
  return text;
}

}  // namespace fathom::text
