#include "text/json_schema.h"

#include <algorithm>
#include <array>
#include <optional>
#include <set>

#include "base/check.h"
#include "text/number_range.h"
#include "text/pattern.h"
#include "text/string_format.h"

namespace fathom::text {
namespace {

using Rule = Grammar::Rule;
using Sequence = Grammar::Sequence;

constexpr int64_t kMostDigits = 16;
constexpr int64_t kMostIndent = 20;
constexpr size_t kMostSchemas = 1000;

Grammar::Symbol derived(Rule rule) { return {rule, {}}; }

Sequence joined(std::initializer_list<Sequence> parts) {
  Sequence all;
  for (const Sequence& part : parts) append(all, part);
  return all;
}

std::string as_text(const Json& json) { return json.dump(-1, ' ', false); }

struct Count {
  int64_t fewest, most;
};

int64_t count_of(const Json& schema, const char* keyword, int64_t otherwise,
                 const std::string& where) {
  const auto it = schema.find(keyword);
  if (it == schema.end()) return otherwise;
  const int64_t count = it->is_number_integer() ? it->get<int64_t>() : -1;
  if (count < 0 || count > Grammar::kMostRepeats)
    fail("{}.{} is {}; expected an integer from 0 to {}", where, keyword, as_text(*it),
         Grammar::kMostRepeats);
  return count;
}

// They say nothing of what satisfies a schema.
bool is_annotation(const std::string& keyword) {
  static const std::set<std::string> kAnnotations = {
      "title", "description", "default",  "examples",  "$schema",    "$defs",
      "$id",   "$comment",    "readOnly", "writeOnly", "deprecated", "definitions"};
  return kAnnotations.contains(keyword);
}

bool is_of_type(const Json& value, const Json& type) {
  if (type.is_array())
    return std::any_of(type.begin(), type.end(),
                       [&](const Json& one) { return is_of_type(value, one); });
  if (type == "number") return value.is_number();
  if (type == "integer") return value.is_number_integer();
  return type == (value.is_object()    ? "object"
                  : value.is_array()   ? "array"
                  : value.is_string()  ? "string"
                  : value.is_boolean() ? "boolean"
                  : value.is_null()    ? "null"
                                       : "");
}

// Bounds that cannot be held to are none where `unheld` says so.
Count counts_of(const Json& schema, const char* fewest, const char* most, const std::string& where,
                UnheldKeywords unheld) {
  try {
    const Count count{count_of(schema, fewest, 0, where), count_of(schema, most, -1, where)};
    if (count.most >= 0 && count.most < count.fewest)
      fail("{}: {} is below {}", where, most, fewest);
    return count;
  } catch (const Error&) {
    if (unheld == UnheldKeywords::kRefused) throw;
    return {0, -1};
  }
}

// Whether no value satisfies both: they are of different types, or objects that both must have a
// member, of different values.
bool exclude_each_other(const Json& a, const Json& b) {
  if (!a.is_object() || !b.is_object()) return false;
  const Json type = a.value("type", Json()), other = b.value("type", Json());
  const auto kind_of = [](const Json& t) { return t == "integer" ? Json("number") : t; };
  if (type.is_string() && other.is_string() && kind_of(type) != kind_of(other)) return true;
  const auto values_of = [](const Json& schema, const std::string& name) -> std::vector<Json> {
    const Json required = schema.value("required", Json::array());
    if (std::find(required.begin(), required.end(), name) == required.end()) return {};
    const Json member = schema.at("properties").value(name, Json::object());
    if (!member.is_object()) return {};
    if (member.contains("const")) return {member.at("const")};
    const Json list = member.value("enum", Json::array());
    return {list.begin(), list.end()};
  };
  if (type != "object" || other != "object" || !a.contains("properties") ||
      !b.contains("properties") || !a.at("properties").is_object() ||
      !b.at("properties").is_object())
    return false;
  for (const auto& [name, unused] : a.at("properties").items()) {
    const std::vector<Json> values = values_of(a, name), others = values_of(b, name);
    const bool share = std::any_of(values.begin(), values.end(), [&](const Json& value) {
      return std::find(others.begin(), others.end(), value) != others.end();
    });
    if (!values.empty() && !others.empty() && !share) return true;
  }
  return false;
}

}  // namespace

Json rest_of(const Json& schema, std::initializer_list<std::string_view> known) {
  Json rest = Json::object();
  for (const auto& [keyword, value] : schema.items())
    if (!is_annotation(keyword) && std::find(known.begin(), known.end(), keyword) == known.end())
      rest[keyword] = value;
  return rest;
}

bool bounds_strings(const Json& schema) {
  static constexpr std::array kKeywords = {"pattern", "format", "minLength", "maxLength"};
  return std::any_of(kKeywords.begin(), kKeywords.end(),
                     [&](const char* keyword) { return schema.contains(keyword); });
}

Rule JsonSchemaGrammar::once(const std::string& name, void (JsonSchemaGrammar::*define)(Rule)) {
  const auto [it, is_new] = named_.try_emplace(name, Rule{});
  if (!is_new) return it->second;
  const Rule rule = it->second = grammar_.add_rule();
  (this->*define)(rule);
  return rule;
}

Rule JsonSchemaGrammar::space() { return once("space", &JsonSchemaGrammar::define_space); }
Rule JsonSchemaGrammar::character() {
  return once("character", &JsonSchemaGrammar::define_character);
}
Rule JsonSchemaGrammar::string() { return once("string", &JsonSchemaGrammar::define_string); }
Rule JsonSchemaGrammar::number() { return once("number", &JsonSchemaGrammar::define_number); }
Rule JsonSchemaGrammar::integer() { return once("integer", &JsonSchemaGrammar::define_integer); }
Rule JsonSchemaGrammar::value() { return once("value", &JsonSchemaGrammar::define_value); }
Rule JsonSchemaGrammar::object() { return once("object", &JsonSchemaGrammar::define_object); }
Rule JsonSchemaGrammar::value_without_strings() {
  return once("value_without_strings", &JsonSchemaGrammar::define_value_without_strings);
}

void JsonSchemaGrammar::define_space(Rule rule) {
  grammar_.add_alternative(rule, {});
  grammar_.add_alternative(rule, literal(" "));
  const Rule indent = repeated(grammar_, literal(" "), 0, kMostIndent);
  grammar_.add_alternative(rule, joined({literal("\n"), {derived(indent)}}));
}

// One character of a string: as it is, or an escape.
void JsonSchemaGrammar::define_character(Rule rule) {
  const CodePointSet plain =
      code_point_set({{0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, ~0u}});
  for (Sequence& way : written_characters(plain, StringWriting::kJson))
    grammar_.add_alternative(rule, std::move(way));
  grammar_.add_alternative(rule, joined({literal("\\"), {byte_in("\"\\/bfnrt")}}));
  // Not the halves of surrogate pairs, which alone are no character.
  const auto hex = byte_in("0123456789abcdefABCDEF");
  grammar_.add_alternative(
      rule, joined({literal("\\u"), {byte_in("0123456789abcefABCEF"), hex, hex, hex}}));
  grammar_.add_alternative(
      rule, joined({literal("\\u"), {byte_in("dD"), byte_between('0', '7'), hex, hex}}));
}

void JsonSchemaGrammar::define_string(Rule rule) {
  const Rule text = repeated(grammar_, {derived(character())}, 0, -1);
  grammar_.add_alternative(rule, joined({literal("\""), {derived(text)}, literal("\"")}));
}

void JsonSchemaGrammar::define_integer(Rule rule) {
  const auto digit = byte_between('0', '9');
  const Rule more = repeated(grammar_, {digit}, 0, kMostDigits - 1);
  for (const char* sign : {"", "-"}) {
    grammar_.add_alternative(rule,
                             joined({literal(sign), {byte_between('1', '9'), derived(more)}}));
  }
  grammar_.add_alternative(rule, literal("0"));
}

void JsonSchemaGrammar::define_number(Rule rule) {
  const auto digit = byte_between('0', '9');
  const Rule digits = repeated(grammar_, {digit}, 1, kMostDigits);
  const Rule fraction = grammar_.add_rule(), exponent = grammar_.add_rule();
  grammar_.add_alternative(fraction, {});
  grammar_.add_alternative(fraction, joined({literal("."), {derived(digits)}}));
  const Rule power = repeated(grammar_, {digit}, 1, 2);
  grammar_.add_alternative(exponent, {});
  for (const char* sign : {"", "+", "-"})
    grammar_.add_alternative(exponent, joined({{byte_in("eE")}, literal(sign), {derived(power)}}));
  grammar_.add_alternative(rule, {derived(integer()), derived(fraction), derived(exponent)});
  grammar_.add_alternative(rule, joined({literal("-0."), {derived(digits), derived(exponent)}}));
}

void JsonSchemaGrammar::define_value_without_strings(Rule rule) {
  grammar_.add_alternative(rule, {derived(object())});
  grammar_.add_alternative(rule, {derived(once("array", &JsonSchemaGrammar::define_array))});
  grammar_.add_alternative(rule, {derived(number())});
  for (const char* word : {"true", "false", "null"}) grammar_.add_alternative(rule, literal(word));
}

void JsonSchemaGrammar::define_value(Rule rule) {
  grammar_.add_alternative(rule, {derived(value_without_strings())});
  grammar_.add_alternative(rule, {derived(string())});
}

Sequence JsonSchemaGrammar::list_of(Rule item, int64_t fewest, int64_t most) {
  const Sequence comma = joined({literal(","), {derived(space())}});
  if (most == 0) return joined({literal("["), {derived(space())}, literal("]")});
  const Rule items = repeated(grammar_, {derived(item)}, std::max<int64_t>(fewest, 1), most, comma);
  const Rule content = grammar_.add_rule();
  grammar_.add_alternative(content, {derived(items), derived(space())});
  if (fewest == 0) grammar_.add_alternative(content, {});
  return joined({literal("["), {derived(space()), derived(content)}, literal("]")});
}

// An object with any keys.
Sequence JsonSchemaGrammar::map_of(Rule item) {
  const Sequence comma = joined({literal(","), {derived(space())}});
  const Sequence member =
      joined({{derived(string())}, literal(":"), {derived(space()), derived(item)}});
  const Rule content = grammar_.add_rule();
  grammar_.add_alternative(content, {});
  grammar_.add_alternative(content,
                           {derived(repeated(grammar_, member, 1, -1, comma)), derived(space())});
  return joined({literal("{"), {derived(space()), derived(content)}, literal("}")});
}

void JsonSchemaGrammar::define_array(Rule rule) {
  grammar_.add_alternative(rule, list_of(value(), 0, -1));
}

void JsonSchemaGrammar::define_object(Rule rule) {
  grammar_.add_alternative(rule, map_of(value()));
}

const Json& JsonSchemaGrammar::resolved(const Json& schema, const std::string& where) const {
  const Json* at = &schema;
  for (int steps = 0; at->is_object() && at->contains("$ref"); ++steps) {
    const Json& ref = at->at("$ref");
    check_alone(rest_of(*at, {"$ref"}), "$ref", where);
    if (!ref.is_string() || !ref.get_ref<const std::string&>().starts_with('#'))
      fail("{}.$ref is {}; expected a place in the same schema: \"#/$defs/...\"", where,
           as_text(ref));
    const std::string pointer = ref.get<std::string>().substr(1);
    try {
      at = &root_.at(Json::json_pointer(pointer));
    } catch (const Json::exception&) {
      fail("{}.$ref: there is no {}", where, as_text(ref));
    }
    if (steps > 64) fail("{}.$ref leads in a circle", where);
  }
  return *at;
}

Rule JsonSchemaGrammar::schema(const Json& schema, const std::string& where) {
  const Json& found = resolved(schema, where);
  if (const auto it = of_schema_.find(&found); it != of_schema_.end()) return it->second;
  // They are read by recursion, and followed by it where they begin with one another.
  if (of_schema_.size() >= kMostSchemas)
    fail("{}: the schema has more than {} parts", where, kMostSchemas);
  const Rule rule = of_schema_[&found] = grammar_.add_rule();  // first: it may contain itself
  define_schema(rule, found, where);
  return rule;
}

void JsonSchemaGrammar::check_keywords(const Json& schema, const std::string& where) const {
  static const std::set<std::string> kHeld = {
      "type",    "properties", "required",  "additionalProperties",
      "items",   "minItems",   "maxItems",  "minLength",
      "pattern", "format",     "maxLength", "exclusiveMinimum",
      "enum",    "const",      "minimum",   "exclusiveMaximum",
      "anyOf",   "oneOf",      "maximum",   "multipleOf",
      "allOf",   "$ref"};
  if (!refuses() || !schema.is_object()) return;
  for (const auto& [keyword, unused] : schema.items())
    if (!kHeld.contains(keyword) && !is_annotation(keyword)) fail_unheld(where + "." + keyword);
}

template <typename Make>
std::optional<Rule> JsonSchemaGrammar::attempt(const Make& make) {
  const Grammar::Mark mark = grammar_.mark();
  try {
    const Rule rule = make(grammar_);
    if (refuses() || !grammar_.is_half_full()) return rule;
  } catch (const Error&) {
    if (refuses()) throw;
  }
  grammar_.return_to(mark);
  return {};
}

void JsonSchemaGrammar::fail_unheld(const std::string& what) const {
  fail("{} cannot be held to while sampling; leave it out, or set \"strict\" to false", what);
}

void JsonSchemaGrammar::check_alone(const Json& rest, const char* keyword,
                                    const std::string& where) const {
  if (refuses() && !rest.empty())
    fail_unheld(fmt::format("{}.{} beside {}", where, rest.items().begin().key(), keyword));
}

void JsonSchemaGrammar::check_exclusive(const Json& options, const std::string& where) const {
  if (!refuses()) return;
  for (size_t i = 0; i < options.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (!exclude_each_other(resolved(options[i], where), resolved(options[j], where)))
        fail_unheld(
            fmt::format("{}.oneOf, of which a value may satisfy both {} and {},", where, j, i));
}

// The keyword's array.
const Json& JsonSchemaGrammar::list_at(const Json& schema, const char* keyword,
                                       const std::string& where) {
  const Json& found = schema.at(keyword);
  if (!found.is_array() || found.empty())
    fail("{}.{} is {}; expected an array that is not empty", where, keyword, as_text(found));
  return found;
}

std::vector<Json> JsonSchemaGrammar::listed_values(const Json& schema,
                                                   const std::string& where) const {
  const bool is_one = schema.contains("const");
  check_alone(rest_of(schema, {"const", "enum", "type"}), is_one ? "const" : "enum", where);
  const Json list =
      is_one ? Json::array({schema.at("const")}) : Json(list_at(schema, "enum", where));
  std::vector<Json> values;
  for (const Json& value : list) {
    const auto& others = is_one && schema.contains("enum") ? schema.at("enum") : list;
    const bool is_listed = std::find(others.begin(), others.end(), value) != others.end();
    if (is_listed && (!schema.contains("type") || is_of_type(value, schema.at("type"))))
      values.push_back(value);
  }
  if (values.empty()) fail("{}: no value satisfies {}", where, as_text(schema));
  return values;
}

// What satisfies both of them, where that can be said in one schema: keywords that do not depend on
// one another are put side by side.
const Json& JsonSchemaGrammar::both(const Json& rest, const Json& option, const char* keyword,
                                    const std::string& where) {
  static const std::set<std::string> kDependent = {
      "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "additionalProperties"};
  if (rest.empty()) return option;
  const Json& other = resolved(option, where);
  bool can_join = other.is_object();
  for (const auto& [name, unused] : rest.items())
    can_join = can_join && !other.contains(name) && !kDependent.contains(name);
  for (const std::string& name : kDependent) can_join = can_join && !other.contains(name);
  if (!can_join) {
    check_alone(rest, keyword, where);
    return option;
  }
  Json joint = other;
  joint.update(rest);
  return *joint_.emplace_back(std::make_unique<Json>(std::move(joint)));
}

void JsonSchemaGrammar::define_options(Rule rule, const Json& schema, const char* keyword,
                                       const std::string& where) {
  const Json& options = list_at(schema, keyword, where);
  if (keyword == std::string("allOf") && options.size() > 1) {
    if (refuses())
      fail("{}.allOf of {} schemas is not supported; write them as one", where, options.size());
    grammar_.add_alternative(rule, {derived(value())});
    return;
  }
  if (keyword == std::string("oneOf")) check_exclusive(options, where);
  const Json rest = rest_of(schema, {keyword});
  for (size_t i = 0; i < options.size(); ++i) {
    const std::string place = fmt::format("{}.{}[{}]", where, keyword, i);
    grammar_.add_alternative(
        rule, {derived(this->schema(both(rest, options[i], keyword, where), place))});
  }
}

void JsonSchemaGrammar::define_schema(Rule rule, const Json& schema, const std::string& where) {
  if (schema.is_boolean() && schema.get<bool>()) {
    grammar_.add_alternative(rule, {derived(value())});
    return;
  }
  if (!schema.is_object()) fail("{} is {}; expected an object", where, as_text(schema));
  check_keywords(schema, where);
  if (schema.contains("const") || schema.contains("enum")) {
    for (const Json& value : listed_values(schema, where))
      grammar_.add_alternative(rule, literal(as_text(value)));
    return;
  }
  for (const char* keyword : {"anyOf", "oneOf", "allOf"})
    if (schema.contains(keyword)) return define_options(rule, schema, keyword, where);
  if (!schema.contains("type")) {
    const bool is_object = schema.contains("properties");
    const Json rest = rest_of(schema, {});
    if (!is_object && refuses() && !rest.empty())
      fail_unheld(fmt::format("{}.{} without a type", where, rest.items().begin().key()));
    grammar_.add_alternative(rule,
                             is_object ? object_of(schema, where) : Sequence{derived(value())});
    return;
  }
  const Json types = schema.at("type").is_array() ? list_at(schema, "type", where)
                                                  : Json::array({schema.at("type")});
  for (const Json& type : types) {
    if (!type.is_string()) fail("{}.type is {}; expected a string", where, as_text(type));
    grammar_.add_alternative(rule, typed(type.get<std::string>(), schema, where));
  }
}

Sequence JsonSchemaGrammar::typed(const std::string& type, const Json& schema,
                                  const std::string& where) {
  if (type == "object") return object_of(schema, where);
  if (type == "array") return array_of(schema, where);
  if (type == "string") return string_of(schema, where);
  if (type == "number" || type == "integer") return number_of(schema, type == "integer", where);
  if (type == "null") return literal("null");
  if (type == "boolean") {
    const Rule rule = grammar_.add_rule();
    grammar_.add_alternative(rule, literal("true"));
    grammar_.add_alternative(rule, literal("false"));
    return {derived(rule)};
  }
  if (!refuses()) return {derived(value())};
  fail("{}.type is \"{}\"; expected object, array, string, number, integer, boolean or null", where,
       type);
}

// Of bounds that cannot be held to together, those that each can be.
Sequence JsonSchemaGrammar::number_of(const Json& schema, bool is_integer,
                                      const std::string& where) {
  const Json asked = number_bounds(schema);
  const Rule any = is_integer ? integer() : number();
  if (asked.empty()) return {derived(any)};
  const auto rule_of = [&](const Json& bounds) {
    return attempt(
        [&](Grammar& grammar) { return number_rule(grammar, bounds, is_integer, where); });
  };
  if (const auto rule = rule_of(asked)) return {derived(*rule)};
  Json held = Json::object();
  for (const auto& [keyword, bound] : asked.items()) {
    const Grammar::Mark mark = grammar_.mark();
    if (rule_of({{keyword, bound}})) held[keyword] = bound;
    grammar_.return_to(mark);
  }
  return {derived(held.empty() ? any : rule_of(held).value_or(any))};
}

Sequence JsonSchemaGrammar::string_of(const Json& schema, const std::string& where) {
  if (!bounds_strings(schema)) return {derived(string())};
  const Rule any = repeated(grammar_, {derived(character())}, 0, -1);
  return joined({literal("\""),
                 {derived(string_text(schema, where, StringWriting::kJson, any))},
                 literal("\"")});
}

// A grammar cannot hold to a pattern, a format and lengths at once: where that is not asked for,
// the first of lengths, pattern and format that it can hold to.
Rule JsonSchemaGrammar::string_text(const Json& schema, const std::string& where,
                                    StringWriting writing, Rule any) {
  std::vector<const char*> asked;
  for (const char* keyword : {"minLength", "maxLength", "pattern", "format"})
    if (schema.contains(keyword)) asked.push_back(keyword);
  const bool has_lengths = schema.contains("minLength") || schema.contains("maxLength");
  const bool has_both = schema.contains("minLength") && schema.contains("maxLength");
  if (refuses() && asked.size() > (has_both ? 2 : 1))
    fail_unheld(fmt::format("{}.{} beside {}", where, asked.front(), asked.back()));
  if (has_lengths) return text_of_length(schema, where, writing, any);
  for (const char* keyword : {"pattern", "format"}) {
    if (!schema.contains(keyword)) continue;
    const auto rule = attempt(
        [&](Grammar& grammar) { return matching_text(grammar, schema, keyword, where, writing); });
    if (rule) return *rule;
  }
  return any;
}

// Bare characters that are counted are none that markup begins with.
Rule JsonSchemaGrammar::text_of_length(const Json& schema, const std::string& where,
                                       StringWriting writing, Rule any) {
  const Count count = counts_of(schema, "minLength", "maxLength", where, unheld_);
  const bool is_open = count.most < 0;
  const int64_t most = is_open ? count.fewest : count.most;
  const Rule counted = writing == StringWriting::kBare
                           ? pattern_rule(grammar_, any_characters(count.fewest, most), writing)
                           : repeated(grammar_, {derived(character())}, count.fewest, most);
  const Rule text = grammar_.add_rule();
  grammar_.add_alternative(
      text, is_open ? Sequence{derived(counted), derived(any)} : Sequence{derived(counted)});
  return text;
}

Rule JsonSchemaGrammar::matching_text(Grammar& grammar, const Json& schema, const char* keyword,
                                      const std::string& where, StringWriting writing) const {
  const Json& given = schema.at(keyword);
  if (!given.is_string()) fail("{}.{} is {}; expected a string", where, keyword, as_text(given));
  std::string pattern = given.get<std::string>();
  const std::string name =
      fmt::format("{}.{} {}", where, keyword,
                  Json(pattern.substr(0, 80)).dump(-1, ' ', false, Json::error_handler_t::replace));
  if (keyword == std::string("format")) pattern = pattern_of_format(pattern);
  if (pattern.empty() && keyword == std::string("format"))
    fail_unheld(fmt::format("{} (known are {})", name, kKnownFormats));
  try {
    return pattern_rule(grammar, parse_pattern(pattern), writing);
  } catch (const Grammar::TooLarge&) {
    throw;
  } catch (const Error& e) {
    fail_unheld(fmt::format("{}: {}", name, e.what()));
  }
}

Sequence JsonSchemaGrammar::array_of(const Json& schema, const std::string& where) {
  const Count count = counts_of(schema, "minItems", "maxItems", where, unheld_);
  const Rule item =
      schema.contains("items") ? this->schema(schema.at("items"), where + ".items") : value();
  return list_of(item, count.fewest, count.most);
}

std::set<std::string> JsonSchemaGrammar::required_of(const Json& schema, const Json& properties,
                                                     const std::string& where) const {
  std::set<std::string> required;
  if (!schema.contains("required")) return required;
  const Json& names = schema.at("required");
  if (!names.is_array()) fail("{}.required is {}; expected an array", where, as_text(names));
  for (const Json& name : names) {
    if (name.is_string() && properties.contains(name.get<std::string>()))
      required.insert(name.get<std::string>());
    else if (refuses())
      fail("{}.required names {}; expected one of the properties", where, as_text(name));
  }
  return required;
}

// Members in order. Of an optional one, the rule that may skip it; a comma stands before every
// member but the first that is there.
Sequence JsonSchemaGrammar::object_of(const Json& schema, const std::string& where) {
  const Json none = Json::object();
  const Json& properties = schema.contains("properties") ? schema.at("properties") : none;
  if (!properties.is_object())
    fail("{}.properties is {}; expected an object", where, as_text(properties));
  const std::set<std::string> required = required_of(schema, properties, where);
  if (properties.empty()) {
    if (!schema.contains("additionalProperties")) return {derived(object())};
    const Json& more = schema.at("additionalProperties");
    if (more == false) return joined({literal("{"), {derived(space())}, literal("}")});
    return map_of(this->schema(more, where + ".additionalProperties"));
  }
  struct Member {
    Sequence text;
    bool is_required;
  };
  std::vector<Member> members;
  for (const auto& [name, property] : properties.items())
    members.push_back(
        {joined({literal(as_text(name)),
                 literal(":"),
                 {derived(space()), derived(this->schema(property, where + "." + name))}}),
         required.contains(name)});
  // What may follow where no member, or some member, stands already; built from the end.
  Rule first = grammar_.add_rule(), later = grammar_.add_rule();
  grammar_.add_alternative(first, {});
  grammar_.add_alternative(later, {derived(space())});
  for (size_t i = members.size(); i-- > 0;) {
    const Rule next_first = grammar_.add_rule(), next_later = grammar_.add_rule();
    grammar_.add_alternative(next_first, joined({members[i].text, {derived(later)}}));
    grammar_.add_alternative(
        next_later, joined({literal(","), {derived(space())}, members[i].text, {derived(later)}}));
    if (!members[i].is_required) {
      grammar_.add_alternative(next_first, {derived(first)});
      grammar_.add_alternative(next_later, {derived(later)});
    }
    first = next_first;
    later = next_later;
  }
  return joined({literal("{"), {derived(space()), derived(first)}, literal("}")});
}

Grammar json_object_grammar() {
  Grammar grammar;
  const Rule start = grammar.add_rule();
  const Json none;
  JsonSchemaGrammar json(grammar, none, UnheldKeywords::kIgnored);
  grammar.add_alternative(start, {derived(json.object())});
  return grammar;
}

Grammar json_schema_grammar(const Json& schema, UnheldKeywords unheld) {
  Grammar grammar;
  const Rule start = grammar.add_rule();
  JsonSchemaGrammar json(grammar, schema, unheld);
  grammar.add_alternative(start, {derived(json.schema(schema, "schema"))});
  grammar.finish();
  return grammar;
}

}  // namespace fathom::text
