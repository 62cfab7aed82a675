#include "text/python_json.h"

#include <vector>

#include "base/check.h"

namespace fathom::text {
namespace {

std::string python_float(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

template <typename Items, typename Print>
std::string joined(const Items& items, char open, char close, const Print& print) {
  std::string out(1, open);
  bool is_first = true;
  for (const auto& item : items) {
    if (!is_first) out += ", ";
    is_first = false;
    out += print(item);
  }
  return out + close;
}

// Bytes that are not UTF-8 become U+FFFD.
std::string python_string(const std::string& value) {
  return Json(value).dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Copying and printing recurse, so the depth that a text can ask for is bounded.
constexpr size_t kMaxDepth = 500;

// Builds the document; only integers that do not fit differ from the library's own builder.
class ExactBuilder : public nlohmann::json_sax<Json> {
 public:
  explicit ExactBuilder(std::string_view source) : source_(source) {}
  Json root;

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t& digits) override {
    if (digits.find_first_of(".eE") != std::string::npos) return put(value);
    return put(Json::binary({digits.begin(), digits.end()}));
  }
  bool string(string_t& value) override { return put(value); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& value) override {
    key_ = value;
    return true;
  }
  bool parse_error(size_t, const std::string&, const Json::exception&) override { return false; }

 private:
  Json* place(Json value) {
    if (stack_.empty()) return &(root = std::move(value));
    Json& parent = *stack_.back();
    if (parent.is_object()) return &(parent[key_] = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }
  bool put(Json value) {
    place(std::move(value));
    return true;
  }
  bool open(Json container) {
    if (stack_.size() == kMaxDepth) fail("{}: JSON nested deeper than {}", source_, kMaxDepth);
    stack_.push_back(place(std::move(container)));
    return true;
  }
  bool close() {
    stack_.pop_back();
    return true;
  }

  std::string_view source_;
  std::string key_;
  std::vector<Json*> stack_;  // parents; a child is only appended to the innermost
};

}  // namespace

std::string python_json(const Json& value) {
  switch (value.type()) {
    case Json::value_t::object:
      return joined(value.items(), '{', '}', [](const auto& item) {
        return python_string(item.key()) + ": " + python_json(item.value());
      });
    case Json::value_t::array:
      return joined(value, '[', ']', [](const Json& item) { return python_json(item); });
    case Json::value_t::string:
      return python_string(value.get_ref<const std::string&>());
    case Json::value_t::number_float:
      return python_float(value.get<double>());
    case Json::value_t::binary:
      return std::string(value.get_binary().begin(), value.get_binary().end());
    default:
      return value.dump();
  }
}

Json parse_json_exactly(std::string_view text, std::string_view source) {
  ExactBuilder builder(source);
  if (!Json::sax_parse(text, &builder))
    return base::parse_json(text, source);  // says what is wrong
  return std::move(builder.root);
}

}  // namespace fathom::text
