// JSON Schema (draft 2020-12) as a grammar of the JSON texts that satisfy it.
//
// Followed: type (also a list), properties, required, additionalProperties (where there are no
// properties), items, minItems, maxItems, minLength, maxLength, pattern or format (pattern.h,
// string_format.h; each alone), minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf
// (number_range.h), enum and const (also beside type), anyOf, oneOf (as anyOf), allOf of one
// schema, all three also beside keywords that they do not repeat, $ref within the document, true.
// Objects give their properties in the schema's order and no others; numbers have at most 16 digits
// before and behind the point; white space is at most one space, or a new line and 20 spaces. At
// most 1,000 parts (schemas within the schema). Bare strings of bounded length or with a pattern
// hold no bar that markup begins with. Annotations (title, description, default, ...) are passed
// over.
#pragma once

#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/code_point_set.h"
#include "text/grammar.h"

namespace fathom::text {

// What becomes of a keyword that a grammar cannot hold an answer to, such as "uniqueItems", of
// bounds above 4,096, patterns that look around, unknown formats, unknown types, allOf of several,
// keywords beside others that they depend on, and requirements that are no properties.
enum class UnheldKeywords { kRefused, kIgnored };

// What a schema asks for beside the keywords that are `known`; annotations ask for nothing.
Json rest_of(const Json& schema, std::initializer_list<std::string_view> known);

// Whether `schema` has one of pattern, format, minLength, maxLength.
bool bounds_strings(const Json& schema);

class JsonSchemaGrammar {
 public:
  // Adds rules to `grammar`. `root` is what $ref is looked up in; both must outlive this object.
  JsonSchemaGrammar(Grammar& grammar, const Json& root, UnheldKeywords unheld)
      : grammar_(grammar), root_(root), unheld_(unheld) {}

  // The rule of the texts that satisfy `schema`. Throws Error naming the place and the keyword.
  Grammar::Rule schema(const Json& schema, const std::string& where);
  Grammar::Rule value();   // any JSON
  Grammar::Rule object();  // any JSON object
  // JSON of any kind but a string.
  Grammar::Rule value_without_strings();
  // The strings that a schema of strings allows, without quotes; `any`: all strings so written.
  Grammar::Rule string_text(const Json& schema, const std::string& where, StringWriting writing,
                            Grammar::Rule any);

  // $ref followed to a schema that is none.
  const Json& resolved(const Json& schema, const std::string& where) const;
  // The values of enum or const that are of the schema's type, at least one.
  std::vector<Json> listed_values(const Json& schema, const std::string& where) const;
  std::set<std::string> required_of(const Json& schema, const Json& properties,
                                    const std::string& where) const;
  // These three throw Error where a keyword is refused: one that is unknown; any of what is asked
  // for beside `keyword`; `what`.
  void check_keywords(const Json& schema, const std::string& where) const;
  void check_alone(const Json& rest, const char* keyword, const std::string& where) const;
  // Options of oneOf are held to only where no value can satisfy two of them.
  void check_exclusive(const Json& options, const std::string& where) const;
  [[noreturn]] void fail_unheld(const std::string& what) const;
  bool refuses() const { return unheld_ == UnheldKeywords::kRefused; }

 private:
  Grammar::Rule once(const std::string& name, void (JsonSchemaGrammar::*define)(Grammar::Rule));
  Grammar::Rule space();
  Grammar::Rule character();
  Grammar::Rule string();
  Grammar::Rule number();
  Grammar::Rule integer();
  void define_space(Grammar::Rule rule);
  void define_character(Grammar::Rule rule);
  void define_string(Grammar::Rule rule);
  void define_number(Grammar::Rule rule);
  void define_integer(Grammar::Rule rule);
  void define_value(Grammar::Rule rule);
  void define_value_without_strings(Grammar::Rule rule);
  void define_object(Grammar::Rule rule);
  void define_array(Grammar::Rule rule);

  void define_schema(Grammar::Rule rule, const Json& schema, const std::string& where);
  Grammar::Sequence typed(const std::string& type, const Json& schema, const std::string& where);
  Grammar::Sequence string_of(const Json& schema, const std::string& where);
  Grammar::Sequence number_of(const Json& schema, bool is_integer, const std::string& where);
  Grammar::Rule text_of_length(const Json& schema, const std::string& where, StringWriting writing,
                               Grammar::Rule any);
  Grammar::Rule matching_text(Grammar& grammar, const Json& schema, const char* keyword,
                              const std::string& where, StringWriting writing) const;
  // What `make` makes; nothing, and nothing of it is left, where it throws Error or takes more than
  // half of the room and that is to be passed over.
  template <typename Make>
  std::optional<Grammar::Rule> attempt(const Make& make);
  Grammar::Sequence array_of(const Json& schema, const std::string& where);
  Grammar::Sequence object_of(const Json& schema, const std::string& where);
  Grammar::Sequence map_of(Grammar::Rule item);
  Grammar::Sequence list_of(Grammar::Rule item, int64_t fewest, int64_t most);
  static const Json& list_at(const Json& schema, const char* keyword, const std::string& where);
  const Json& both(const Json& rest, const Json& option, const char* keyword,
                   const std::string& where);
  void define_options(Grammar::Rule rule, const Json& schema, const char* keyword,
                      const std::string& where);

  Grammar& grammar_;
  const Json& root_;
  UnheldKeywords unheld_;
  std::map<std::string, Grammar::Rule> named_;      // rules that every schema shares
  std::map<const Json*, Grammar::Rule> of_schema_;  // by the schema's place, in root_ or joint_
  std::vector<std::unique_ptr<Json>> joint_;        // schemas put together from two
};

// Whole answers.
Grammar json_object_grammar();
Grammar json_schema_grammar(const Json& schema, UnheldKeywords unheld);

}  // namespace fathom::text
