#include "server/text_model.h"

#include <cmath>

#include "base/check.h"
#include "base/json.h"
#include "text/chat_markup.h"

namespace fathom::server {
namespace {

void check_fits(const text::Tokenizer& tokenizer, const model::Config& config,
                const std::filesystem::path& tokenizer_json) {
  if (tokenizer.vocab_size() > config.vocab_size)
    fail(
        "{}: has ids up to {}, but config.json's vocab_size is {}; it is another model's tokenizer",
        tokenizer_json.string(), tokenizer.vocab_size() - 1, config.vocab_size);
  const auto check_id = [&](std::string_view token, const char* field, int64_t expected) {
    const auto id = tokenizer.find(token);
    if (id && *id != expected)
      fail("{}: {} is token {}, but config.json's {} is {}; it is another model's tokenizer",
           tokenizer_json.string(), token, *id, field, expected);
  };
  check_id(text::markup::kBos, "bos_token_id", config.bos_token_id);
  check_id(text::markup::kEos, "eos_token_id", config.eos_token_id);
}

Json read_generation_config(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return Json::object();
  Json json = base::read_json_file(path);
  if (!json.is_object()) fail("{}: a generation config is a JSON object", path.string());
  return json;
}

// One id or a list.
std::vector<int32_t> read_stop_token_ids(const Json& json, const std::string& source,
                                         int64_t vocab_size) {
  const Json given = json.value("eos_token_id", Json());
  std::vector<int32_t> ids;
  if (given.is_null()) return ids;
  for (const Json& id : given.is_array() ? given : Json::array({given})) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= vocab_size)
      fail("{}: field \"eos_token_id\" is {}; expected token ids from 0 to {}", source,
           given.dump(), vocab_size - 1);
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

// The file's other fields (lengths, the version that wrote it) are no matter of sampling.
engine::SamplingOptions read_sampling(const Json& json, const std::string& source) {
  engine::SamplingOptions sampling;
  const auto number = [&](const char* field, double otherwise) {
    const Json value = json.value(field, Json());
    if (value.is_null()) return otherwise;
    if (!value.is_number())
      fail("{}: field \"{}\" is {}; expected a number", source, field, value.dump());
    return value.get<double>();
  };
  sampling.temperature = number("temperature", sampling.temperature);
  sampling.top_p = number("top_p", sampling.top_p);
  const double top_k = number("top_k", sampling.top_k);
  if (top_k < 0 || top_k > INT32_MAX || top_k != std::floor(top_k))
    fail("{}: field \"top_k\" is {}; expected an integer of at least 0", source, top_k);
  sampling.top_k = static_cast<int>(top_k);
  sampling.min_p = number("min_p", sampling.min_p);
  if (json.value("do_sample", Json(true)) == false) sampling.temperature = 0;
  try {
    engine::validate(sampling);
  } catch (const Error& error) {
    fail("{}: {}", source, error.what());
  }
  return sampling;
}

}  // namespace

TextModel load_text_model(const std::filesystem::path& folder) {
  auto model = model::load_model(folder);
  const auto tokenizer_json = folder / "tokenizer.json";
  auto tokenizer = text::Tokenizer::load(tokenizer_json);
  check_fits(tokenizer, model::config_of(*model), tokenizer_json);
  if (tokenizer.vocab_size() < model::config_of(*model).vocab_size)
    model = model::with_vocabulary(*model, tokenizer.vocab_size());
  const auto path = folder / "generation_config.json";
  const Json generation = read_generation_config(path);
  const int64_t vocab_size = model::config_of(*model).vocab_size;
  return {std::move(model), std::move(tokenizer), read_sampling(generation, path.string()),
          read_stop_token_ids(generation, path.string(), vocab_size)};
}

}  // namespace fathom::server
