#include "text/answer_grammar.h"

#include <algorithm>
#include <memory>
#include <set>

#include "base/check.h"
#include "text/chat_markup.h"
#include "text/json_schema.h"

namespace fathom::text {
namespace {

using Rule = Grammar::Rule;
using Sequence = Grammar::Sequence;

Grammar::Symbol derived(Rule rule) { return {rule, {}}; }

constexpr int kMostLevels = 16;  // of alternatives within a parameter's alternatives

bool holds_markup(const std::string& text) { return text.find(markup::kDsml) != text.npos; }

// A name as it stands in a tag.
std::string in_quotes(const Json& name, const std::string& where) {
  if (!name.is_string() || name.get_ref<const std::string&>().empty())
    fail("{} is {}; expected a name", where, name.dump());
  const std::string& text = name.get_ref<const std::string&>();
  if (text.find_first_of("\"<>\n") != std::string::npos || holds_markup(text))
    fail("{} is {}; expected a name without quotes, angle brackets, new lines and markup", where,
         name.dump());
  return "\"" + text + "\"";
}

bool names_string(const Json& type) {
  if (type.is_array()) return std::any_of(type.begin(), type.end(), names_string);
  return type == "string";
}

// The tools' calls, one function after another.
class CallGrammar {
 public:
  explicit CallGrammar(Grammar& grammar)
      : grammar_(grammar), free_string_(bytes_without(grammar, markup::kDsml)) {}

  // "<｜DSML｜invoke name=..." to its closing tag and new line.
  Sequence call(const Json& tool, const std::string& where) {
    const Json& function = member(tool, "function", where);
    const Json& name = member(function, "name", where + ".function");
    Sequence all = literal(std::string(markup::kInvokeTag) +
                           " name=" + in_quotes(name, where + ".function.name") + ">\n");
    append(all, {derived(arguments(function, where + ".function"))});
    append(all, literal(std::string(markup::kInvokeEndTag) + ">\n"));
    return all;
  }

 private:
  // No parameters are written as an empty line, or not at all.
  Rule arguments(const Json& function, const std::string& where) {
    const Rule rule = grammar_.add_rule();
    grammar_.add_alternative(rule, {derived(parameters(function, where))});
    if (!requires_any(function)) grammar_.add_alternative(rule, literal("\n"));
    return rule;
  }

  static bool requires_any(const Json& function) {
    const Json parameters = function.value("parameters", Json::object());
    return parameters.is_object() && !parameters.value("required", Json::array()).empty();
  }

  static const Json& member(const Json& object, const char* name, const std::string& where) {
    if (!object.is_object() || !object.contains(name)) fail("{}: {} is missing", where, name);
    return object.at(name);
  }

  // In the schema's order; those that are not required may be left out.
  Rule parameters(const Json& function, const std::string& function_place) {
    const Rule end = grammar_.add_rule();
    grammar_.add_alternative(end, {});
    if (!function.contains("parameters") || function.at("parameters").is_null()) return end;
    const std::string where = function_place + ".parameters";
    const Json& root = function.at("parameters");
    const bool is_strict = function.contains("strict") && function.at("strict") == true;
    JsonSchemaGrammar json(grammar_, root,
                           is_strict ? UnheldKeywords::kRefused : UnheldKeywords::kIgnored);
    const Json& schema = json.resolved(root, where);
    if (!schema.is_object()) fail("{}: expected an object", where);
    json.check_keywords(schema, where);
    for (const char* keyword : {"enum", "const", "anyOf", "oneOf", "allOf"})
      if (is_strict && schema.contains(keyword)) json.fail_unheld(where + "." + keyword);
    if (!schema.contains("properties")) return end;
    if (!schema.at("properties").is_object()) fail("{}.properties: expected an object", where);
    const auto required = json.required_of(schema, schema.at("properties"), where);
    std::vector<std::pair<std::string, const Json*>> properties;
    for (const auto& [name, property] : schema.at("properties").items())
      properties.emplace_back(name, &property);
    Rule rest = end;
    for (size_t i = properties.size(); i-- > 0;) {
      const auto& [name, property] = properties[i];
      const Rule rule = grammar_.add_rule();
      if (!required.contains(name)) grammar_.add_alternative(rule, {derived(rest)});
      for (Sequence& written : values(json, *property, where + "." + name)) {
        Sequence all = literal(std::string(markup::kParameterTag) +
                               " name=" + in_quotes(name, where + "'s property") + " string=");
        append(all, written);
        append(all, literal("<" + std::string(markup::kParameterEndTag) + ">\n"));
        append(all, {derived(rest)});
        grammar_.add_alternative(rule, std::move(all));
      }
      rest = rule;
    }
    return rest;
  }

  static Sequence as_string(Sequence text) {
    Sequence all = literal("\"true\">");
    append(all, text);
    return all;
  }
  static Sequence as_json(Sequence text) {
    Sequence all = literal("\"false\">");
    append(all, text);
    return all;
  }

  static std::vector<Sequence> listed(const JsonSchemaGrammar& json, const Json& schema,
                                      const std::string& where) {
    std::vector<Sequence> all;
    for (const Json& value : json.listed_values(schema, where)) {
      if (value.is_string() && holds_markup(value.get_ref<const std::string&>()))
        fail("{} lists {}, which holds the markup of calls", where, value.dump());
      all.push_back(value.is_string() ? as_string(literal(value.get<std::string>()))
                                      : as_json(literal(value.dump(-1, ' ', false))));
    }
    return all;
  }

  // Options alone can be held to, and one of all.
  static void check_options(const JsonSchemaGrammar& json, const Json& schema, const char* keyword,
                            const std::string& where) {
    if (json.refuses() && keyword == std::string("allOf") && schema.at(keyword).size() > 1)
      json.fail_unheld(fmt::format("{}.allOf of {} schemas", where, schema.at(keyword).size()));
    if (keyword == std::string("oneOf")) json.check_exclusive(schema.at(keyword), where);
    json.check_alone(rest_of(schema, {keyword}), keyword, where);
  }

  // The ways to write a value of `schema`: its strings bare, everything else as JSON.
  std::vector<Sequence> values(JsonSchemaGrammar& json, const Json& given, const std::string& where,
                               int level = 0) {
    if (level > kMostLevels) fail("{}: leads deeper than {} levels, or in a circle", where, level);
    const Json& schema = json.resolved(given, where);
    std::vector<Sequence> all;
    if (!schema.is_object() ||
        (!schema.contains("type") && !schema.contains("enum") && !schema.contains("const") &&
         !schema.contains("anyOf") && !schema.contains("oneOf") && !schema.contains("allOf") &&
         !schema.contains("properties"))) {
      if (const Json rest = schema.is_object() ? rest_of(schema, {}) : Json::object();
          json.refuses() && !rest.empty())
        json.fail_unheld(fmt::format("{}.{} without a type", where, rest.items().begin().key()));
      all.push_back(as_string({derived(free_string_)}));
      all.push_back(as_json({derived(json.value_without_strings())}));
      return all;
    }
    json.check_keywords(schema, where);
    if (schema.contains("enum") || schema.contains("const")) return listed(json, schema, where);
    for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
      if (!schema.contains(keyword) || !schema.at(keyword).is_array()) continue;
      check_options(json, schema, keyword, where);
      for (const Json& option : schema.at(keyword))
        for (Sequence& way : values(json, option, where + "." + keyword, level + 1))
          all.push_back(std::move(way));
      return all;
    }
    if (!schema.contains("type") || !names_string(schema.at("type")))
      return {as_json({derived(json.schema(schema, where))})};
    all.push_back(as_string({derived(
        bounds_strings(schema) ? json.string_text(schema, where, StringWriting::kBare, free_string_)
                               : free_string_)}));
    if (!schema.at("type").is_array()) return all;
    others_.push_back(std::make_unique<Json>(schema));  // the rules refer to it
    Json& others = *others_.back();
    others["type"] = Json::array();
    for (const Json& type : schema.at("type"))
      if (type != "string") others["type"].push_back(type);
    if (!others["type"].empty()) all.push_back(as_json({derived(json.schema(others, where))}));
    return all;
  }

  Grammar& grammar_;
  Rule free_string_;
  std::vector<std::unique_ptr<Json>> others_;
};

// "\n\n<｜DSML｜function_calls>\n" to the closing tag.
Sequence calls_of(Grammar& grammar, const AnswerFormat& format) {
  const Json& tools = format.tools;
  if (!tools.is_array() || tools.empty()) fail("tools: expected at least one function");
  CallGrammar calls(grammar);
  const Rule any = grammar.add_rule();
  for (size_t i = 0; i < tools.size(); ++i)
    grammar.add_alternative(any, calls.call(tools[i], fmt::format("tools[{}]", i)));
  Sequence all = literal(markup::kCallsOpen);
  append(all, {derived(repeated(grammar, {derived(any)}, 1, format.allows_many_calls ? -1 : 1))});
  append(all, literal(markup::kCallsClose));
  return all;
}

// After the reasoning.
Rule content_of(Grammar& grammar, const AnswerFormat& format, JsonSchemaGrammar& json) {
  const Rule rule = grammar.add_rule();
  switch (format.kind) {
    case AnswerFormat::Kind::kJson:
      if (!format.tools.empty()) grammar.add_alternative(rule, calls_of(grammar, format));
      grammar.add_alternative(
          rule, {derived(format.schema.is_null() ? json.object()
                                                 : json.schema(format.schema, "schema"))});
      break;
    case AnswerFormat::Kind::kCalls:
      grammar.add_alternative(rule, calls_of(grammar, format));
      break;
    case AnswerFormat::Kind::kText: {
      const Rule text = bytes_without(grammar, markup::kCallsTag.substr(2));
      grammar.add_alternative(rule, {derived(text)});
      Sequence with_calls = {derived(text)};
      append(with_calls, calls_of(grammar, format));
      grammar.add_alternative(rule, std::move(with_calls));
    }
  }
  return rule;
}

}  // namespace

Grammar answer_grammar(const AnswerFormat& format) {
  Grammar grammar;
  const Rule start = grammar.add_rule();
  JsonSchemaGrammar json(grammar, format.schema,
                         format.is_strict ? UnheldKeywords::kRefused : UnheldKeywords::kIgnored);
  const Rule content = content_of(grammar, format, json);
  if (format.thinking_mode == ThinkingMode::kThinking) {
    Sequence all = {derived(bytes_without(grammar, markup::kThinkEnd))};
    append(all, literal(markup::kThinkEnd));
    append(all, {derived(content)});
    grammar.add_alternative(start, std::move(all));
  } else {
    grammar.add_alternative(start, {derived(content)});
  }
  grammar.finish();
  return grammar;
}

}  // namespace fathom::text
