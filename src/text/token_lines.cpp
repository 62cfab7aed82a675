#include "text/token_lines.h"

#include <limits>

#include "base/check.h"
#include "base/json.h"
#include "text/utf8.h"

namespace fathom::text {

namespace {

// Calls convert(json, where) with each line; what it returns is written as a line.
template <typename Convert>
void convert_lines(std::istream& input, std::ostream& output, Convert convert) {
  int64_t line_number = 0;
  for (std::string line; std::getline(input, line);) {
    const std::string where = fmt::format("line {}", ++line_number);
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded()) fail("{}: not valid JSON", where);
    output << convert(json, where).dump() << '\n';
  }
  output.flush();
  if (!output) fail("can't write the output after line {}", line_number);
}

std::vector<TokenId> read_ids(const Json& json, const std::string& where) {
  std::vector<TokenId> ids;
  if (!json.is_array()) fail("{}: expected a JSON list of token ids", where);
  for (const Json& id : json) {
    const bool is_id = id.is_number_integer() && id.get<int64_t>() >= 0 &&
                       id.get<int64_t>() <= std::numeric_limits<TokenId>::max();
    if (!is_id) fail("{}: expected token ids, found {}", where, id.dump());
    ids.push_back(id.get<TokenId>());
  }
  return ids;
}

}  // namespace

void encode_lines(const Tokenizer& tokenizer, std::istream& input, std::ostream& output) {
  convert_lines(input, output, [&](const Json& json, const std::string& where) -> Json {
    if (!json.is_string()) fail("{}: expected a JSON string", where);
    return tokenizer.encode(json.get_ref<const std::string&>());
  });
}

void decode_lines(const Tokenizer& tokenizer, std::istream& input, std::ostream& output) {
  convert_lines(input, output, [&](const Json& json, const std::string& where) -> Json {
    const std::vector<TokenId> ids = read_ids(json, where);
    try {
      return replace_invalid_utf8(tokenizer.decode(ids));
    } catch (const Error& error) {
      fail("{}: {}", where, error.what());
    }
  });
}

void tokenize_lines(const TokenizeOptions& options, std::istream& input, std::ostream& output) {
  const Tokenizer tokenizer = Tokenizer::load(options.model / "tokenizer.json");
  options.decode ? decode_lines(tokenizer, input, output) : encode_lines(tokenizer, input, output);
}

}  // namespace fathom::text
