#include "text/html_text.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <optional>
#include <utility>

#include "text/utf8.h"

namespace fathom::text {

namespace {

constexpr std::string_view kDroppedTags[] = {"script", "style",  "head",    "nav",
                                             "form",   "select", "button",  "svg",
                                             "footer", "iframe", "noscript"};
// Classes and roles of what surrounds the text in Sphinx, DocBook, gtk-doc, Doxygen, SQLite.
constexpr std::string_view kDroppedClasses[] = {"sphinxsidebar",
                                                "related",
                                                "headerlink",
                                                "navheader",
                                                "navfooter",
                                                "nosearch",
                                                "docnav",
                                                "navigation",
                                                "toc",
                                                "toctree-wrapper",
                                                "footer",
                                                "menu",
                                                "mobile-nav",
                                                "fancy_toc",
                                                "permalink",
                                                "sidebar",
                                                "contents",
                                                "banner",
                                                "indexterm",
                                                "inline-toc",
                                                "nav",
                                                "hd",
                                                "ft",
                                                "rel",
                                                "global-nav",
                                                "book-navigation",
                                                "page-links"};
constexpr std::string_view kBlockTags[] = {
    "p",  "div",        "h1",      "h2",      "h3",      "h4",    "h5", "h6",
    "ul", "ol",         "dl",      "dd",      "dt",      "li",    "tr", "hr",
    "br", "blockquote", "section", "article", "caption", "table", "pre"};
// Blocks with an empty line around them.
constexpr std::string_view kSpacedTags[] = {"p",  "h1", "h2",         "h3",    "h4",  "h5", "h6",
                                            "hr", "ul", "blockquote", "table", "pre", "dl"};
constexpr std::string_view kVoidTags[] = {"br",   "hr",    "img", "input", "link",
                                          "meta", "param", "col", "area",  "base"};

constexpr std::pair<std::string_view, uint32_t> kEntities[] = {
    {"amp", '&'},       {"lt", '<'},       {"gt", '>'},        {"quot", '"'},
    {"apos", '\''},     {"nbsp", ' '},     {"ndash", 0x2013},  {"mdash", 0x2014},
    {"lsquo", 0x2018},  {"rsquo", 0x2019}, {"ldquo", 0x201C},  {"rdquo", 0x201D},
    {"hellip", 0x2026}, {"bull", 0x2022},  {"middot", 0xB7},   {"copy", 0xA9},
    {"reg", 0xAE},      {"trade", 0x2122}, {"sect", 0xA7},     {"para", 0xB6},
    {"deg", 0xB0},      {"plusmn", 0xB1},  {"times", 0xD7},    {"divide", 0xF7},
    {"frac12", 0xBD},   {"frac14", 0xBC},  {"frac34", 0xBE},   {"micro", 0xB5},
    {"laquo", 0xAB},    {"raquo", 0xBB},   {"larr", 0x2190},   {"uarr", 0x2191},
    {"rarr", 0x2192},   {"darr", 0x2193},  {"harr", 0x2194},   {"rArr", 0x21D2},
    {"le", 0x2264},     {"ge", 0x2265},    {"ne", 0x2260},     {"equiv", 0x2261},
    {"minus", 0x2212},  {"infin", 0x221E}, {"radic", 0x221A},  {"sum", 0x2211},
    {"part", 0x2202},   {"isin", 0x2208},  {"alpha", 0x3B1},   {"beta", 0x3B2},
    {"gamma", 0x3B3},   {"delta", 0x3B4},  {"epsilon", 0x3B5}, {"lambda", 0x3BB},
    {"mu", 0x3BC},      {"pi", 0x3C0},     {"sigma", 0x3C3},   {"theta", 0x3B8},
    {"agrave", 0xE0},   {"aacute", 0xE1},  {"auml", 0xE4},     {"aring", 0xE5},
    {"ccedil", 0xE7},   {"egrave", 0xE8},  {"eacute", 0xE9},   {"euml", 0xEB},
    {"iacute", 0xED},   {"iuml", 0xEF},    {"ntilde", 0xF1},   {"oacute", 0xF3},
    {"ouml", 0xF6},     {"oslash", 0xF8},  {"uacute", 0xFA},   {"uuml", 0xFC},
    {"Auml", 0xC4},     {"Ouml", 0xD6},    {"Uuml", 0xDC},     {"szlig", 0xDF},
    {"pound", 0xA3},    {"euro", 0x20AC},  {"cent", 0xA2},     {"dagger", 0x2020},
    {"ensp", ' '},      {"emsp", ' '},     {"thinsp", ' '},    {"prime", 0x2032}};

template <size_t n>
bool contains(const std::string_view (&list)[n], std::string_view word) {
  return std::find(list, list + n, word) != list + n;
}

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f'; }

struct Tag {
  std::string name;  // lower case
  bool is_closing = false;
  bool is_empty = false;  // <a/> or a void element
  bool is_dropped = false;
};

// Value of one attribute: words of class, id and role decide whether an element is dropped.
bool has_dropped_word(std::string_view value) {
  while (!value.empty()) {
    const size_t end = std::min(value.find_first_of(" \t\n"), value.size());
    if (contains(kDroppedClasses, value.substr(0, end))) return true;
    value.remove_prefix(std::min(end + 1, value.size()));
  }
  return false;
}

bool has_dropped_attribute(std::string_view attributes) {
  for (const std::string_view name : {"class=", "id=", "role="}) {
    size_t at = attributes.find(name);
    while (at != std::string_view::npos && at > 0 && !is_space(attributes[at - 1])) {
      at = attributes.find(name, at + 1);
    }
    if (at == std::string_view::npos) continue;
    std::string_view value = attributes.substr(at + name.size());
    if (value.empty()) continue;
    const bool is_quoted = value[0] == '"' || value[0] == '\'';
    const size_t end = is_quoted ? value.find(value[0], 1) : value.find_first_of(" \t\n>");
    if (has_dropped_word(value.substr(is_quoted, end - is_quoted))) return true;
  }
  return false;
}

// `inside` is what stands between the angle brackets.
Tag parse_tag(std::string_view inside) {
  Tag tag;
  if (!inside.empty() && inside[0] == '/') {
    tag.is_closing = true;
    inside.remove_prefix(1);
  }
  size_t size = 0;
  while (size < inside.size() && std::isalnum(static_cast<unsigned char>(inside[size]))) ++size;
  for (const char c : inside.substr(0, size)) {
    tag.name += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  tag.is_empty = inside.ends_with('/') || contains(kVoidTags, tag.name);
  tag.is_dropped = contains(kDroppedTags, tag.name) || has_dropped_attribute(inside.substr(size));
  return tag;
}

// End of the tag that begins at `begin`: a '>' in a quoted attribute doesn't close it.
size_t end_of_tag(std::string_view html, size_t begin) {
  char quote = 0;
  for (size_t i = begin + 1; i < html.size(); ++i) {
    const char c = html[i];
    if (quote != 0) {
      if (c == quote) quote = 0;
    } else if ((c == '"' || c == '\'') && html[i - 1] == '=') {
      quote = c;
    } else if (c == '>') {
      return i + 1;
    }
  }
  return html.size();
}

// Reads the entity at `text[0] == '&'`; returns its length or 0.
size_t read_entity(std::string_view text, uint32_t* code) {
  const size_t end = text.substr(0, 12).find(';');
  if (end == std::string_view::npos || end < 2) return 0;
  std::string_view name = text.substr(1, end - 1);
  if (name[0] == '#') {
    name.remove_prefix(1);
    const bool is_hex = !name.empty() && (name[0] == 'x' || name[0] == 'X');
    if (is_hex) name.remove_prefix(1);
    const auto [rest, error] =
        std::from_chars(name.data(), name.data() + name.size(), *code, is_hex ? 16 : 10);
    if (error != std::errc() || rest != name.data() + name.size()) return 0;
    if (*code == 0xA0) *code = ' ';
    return end + 1;
  }
  for (const auto& [known, value] : kEntities) {
    if (known == name) {
      *code = value;
      return end + 1;
    }
  }
  return 0;
}

class HtmlText {
 public:
  explicit HtmlText(std::string_view html) : html_(html) {}

  std::string convert() {
    while (position_ < html_.size()) {
      if (html_[position_] == '<' && read_markup()) continue;
      read_character();
    }
    return std::move(text_);
  }

 private:
  bool read_markup() {
    const std::string_view rest = html_.substr(position_);
    if (rest.starts_with("<!--")) {
      const size_t end = html_.find("-->", position_ + 4);
      position_ = end == std::string_view::npos ? html_.size() : end + 3;
      return true;
    }
    if (rest.size() < 2) return false;
    const auto next = static_cast<unsigned char>(rest[1]);
    if (next != '/' && next != '!' && next != '?' && !std::isalpha(next)) return false;
    const size_t end = end_of_tag(html_, position_);
    const Tag tag = parse_tag(html_.substr(position_ + 1, end - position_ - 2));
    position_ = end;
    if (next != '!' && next != '?') apply(tag);
    return true;
  }

  void apply(const Tag& tag) {
    if (!dropped_tag_.empty()) {
      if (tag.name == dropped_tag_ && !tag.is_empty) dropped_depth_ += tag.is_closing ? -1 : 1;
      if (dropped_depth_ == 0) dropped_tag_.clear();
      return;
    }
    if (tag.is_dropped && !tag.is_closing && !tag.is_empty) {
      dropped_tag_ = tag.name;
      dropped_depth_ = 1;
      if (tag.name == "script" || tag.name == "style") skip_raw_text();
      return;
    }
    if (tag.name == "pre") is_preformatted_ = !tag.is_closing;
    if (contains(kBlockTags, tag.name)) num_newlines_ = std::max(num_newlines_, 1);
    if (contains(kSpacedTags, tag.name)) num_newlines_ = 2;
    if (tag.name == "li" && !tag.is_closing) prefix_ = "- ";
    if ((tag.name == "td" || tag.name == "th") && !tag.is_closing) wants_gap_ = true;
  }

  // In scripts and styles "<" doesn't open a tag.
  void skip_raw_text() {
    const std::string closing = "</" + dropped_tag_;
    position_ = std::min(html_.find(closing, position_), html_.size());
  }

  void read_character() {
    const char c = html_[position_];
    if (!dropped_tag_.empty()) {
      ++position_;
      return;
    }
    if (is_space(c)) {
      ++position_;
      if (is_preformatted_) {
        c == '\n' ? keep_newline() : put(c == '\t' ? "    " : " ");
      } else {
        wants_space_ = true;
      }
      return;
    }
    uint32_t code = 0;
    const size_t length = c == '&' ? read_entity(html_.substr(position_), &code) : 0;
    std::string character(1, c);
    if (length > 0) {
      character.clear();
      append_utf8(&character, code);
    }
    position_ += std::max<size_t>(length, 1);
    put(character);
  }

  void keep_newline() {
    if (num_newlines_ == 0) text_ += '\n';
  }

  void put(std::string_view character) {
    if (num_newlines_ > 0) {
      if (!text_.empty()) {
        while (!text_.empty() && (text_.back() == ' ' || text_.back() == '\n')) text_.pop_back();
        text_.append(num_newlines_, '\n');
      }
    } else if (wants_gap_) {
      text_ += "  ";
    } else if (wants_space_ && !text_.empty() && !is_space(text_.back())) {
      text_ += ' ';
    }
    text_ += std::exchange(prefix_, "");
    text_ += character;
    num_newlines_ = 0;
    wants_space_ = wants_gap_ = false;
  }

  std::string_view html_;
  size_t position_ = 0;
  std::string text_;
  std::string dropped_tag_;  // the element being dropped; empty: none
  int dropped_depth_ = 0;
  bool is_preformatted_ = false;
  // Wanted before the next character.
  int num_newlines_ = 0;
  bool wants_space_ = false;
  bool wants_gap_ = false;  // between cells of a table
  const char* prefix_ = "";
};

}  // namespace

std::string html_to_text(std::string_view html) { return HtmlText(html).convert(); }

}  // namespace fathom::text
