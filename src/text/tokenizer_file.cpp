#include "text/tokenizer_file.h"

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <set>
#include <unordered_map>

#include "base/check.h"
#include "base/json.h"
#include "text/byte_level.h"

namespace fathom::text {

namespace {

// Not the ordered Json: its objects look keys up one by one, and a vocabulary is one object.
using SortedJson = nlohmann::json;

constexpr int64_t kMaxTokenId = 1 << 24;

// A value of the file with its path in it, for errors.
struct Field {
  const SortedJson& json;
  std::string path;  // "SOURCE: model.vocab"

  Field at(const std::string& key) const {
    const std::string child = path.ends_with(": ") ? path + key : path + "." + key;
    if (!json.contains(key)) fail("{}: missing", child);
    return {json.at(key), child};
  }
  Field at(size_t index) const { return {json.at(index), fmt::format("{}[{}]", path, index)}; }
  std::string shown() const {
    const std::string text = json.dump(-1, ' ', false, SortedJson::error_handler_t::replace);
    return text.size() <= 80 ? text : text.substr(0, 77) + "...";
  }
  [[noreturn]] void refuse(std::string_view expected) const {
    const std::string_view place(path.data(), path.size() - (path.ends_with(": ") ? 2 : 0));
    fail("{}: expected {}, found {}", place, expected, shown());
  }
  const std::string& text() const {
    if (!json.is_string()) refuse("a string");
    return json.get_ref<const std::string&>();
  }
  const Field& object() const {
    if (!json.is_object()) refuse("an object");
    return *this;
  }
  const Field& array() const {
    if (!json.is_array()) refuse("an array");
    return *this;
  }
  int32_t token_id() const {
    const int64_t id = json.is_number_integer() ? json.get<int64_t>() : -1;
    if (id < 0 || id > kMaxTokenId) refuse("a token id from 0 to 16777216");
    return static_cast<int32_t>(id);
  }
};

// The key, where present, must be null or one of `allowed`: anything else would change ids.
void require(const Field& object, const std::string& key,
             std::initializer_list<SortedJson> allowed) {
  if (!object.json.contains(key) || object.json.at(key).is_null()) return;
  const Field value = object.at(key);
  if (std::find(allowed.begin(), allowed.end(), value.json) != allowed.end()) return;
  fail("{}: {} is not supported; only {} is", value.path, value.shown(),
       allowed.size() == 0 ? "null" : allowed.begin()->dump());
}

void check_normalizer(const Field& file) {
  if (!file.json.contains("normalizer") || file.json.at("normalizer").is_null()) return;
  const Field normalizer = file.at("normalizer").object();
  const std::string& type = normalizer.at("type").text();
  if (type == "Sequence" && normalizer.at("normalizers").array().json.empty()) return;
  fail("{}: normalizer {} is not supported; only null or an empty Sequence is", normalizer.path,
       type == "Sequence" ? normalizer.at("normalizers").at(0).shown() : type);
}

void check_byte_level(const Field& stage) {
  require(stage, "add_prefix_space", {false});
  if (!stage.json.contains("use_regex")) fail("{}.use_regex: missing, expected false", stage.path);
  require(stage, "use_regex", {false});
}

std::vector<std::string> read_splits(const Field& file) {
  const Field sequence = file.at("pre_tokenizer").object();
  if (sequence.at("type").text() != "Sequence") {
    fail("{}: {} is not supported; only a Sequence of Split stages and a ByteLevel is",
         sequence.path, sequence.at("type").text());
  }
  const Field stages = sequence.at("pretokenizers").array();
  std::vector<std::string> splits;
  for (size_t i = 0; i < stages.json.size(); ++i) {
    const Field stage = stages.at(i).object();
    const std::string& type = stage.at("type").text();
    const bool is_last = i + 1 == stages.json.size();
    if (type == "ByteLevel" && is_last) {
      check_byte_level(stage);
      return splits;
    }
    if (type != "Split") {
      fail("{}: pre-tokenizer {} is not supported here; only Split, and ByteLevel as the last",
           stage.path, type);
    }
    require(stage, "behavior", {"Isolated"});
    require(stage, "invert", {false});
    splits.push_back(stage.at("pattern").object().at("Regex").text());
  }
  fail("{}: must end in a ByteLevel stage", stages.path);
}

// Those that add special tokens are left out: the chat format writes them. Others change the text.
void check_post_processor(const Field& stage) {
  const std::string& type = stage.object().at("type").text();
  if (type == "Sequence") {
    const Field stages = stage.at("processors").array();
    for (size_t i = 0; i < stages.json.size(); ++i) check_post_processor(stages.at(i));
  } else if (type != "ByteLevel" && type != "TemplateProcessing") {
    fail("{}: {} is not supported; only ByteLevel and TemplateProcessing are", stage.path, type);
  }
}

void check_model(const Field& file, const Field& model) {
  // Files from before version 0.9 of the library have no type: merges, asked for below, make it
  // BPE.
  if (model.json.contains("type") && model.at("type").text() != "BPE") {
    fail("{}: {} is not supported; only BPE is", model.at("type").path, model.at("type").text());
  }
  require(model, "dropout", {});
  require(model, "unk_token", {});
  require(model, "continuing_subword_prefix", {""});
  require(model, "end_of_word_suffix", {""});
  require(model, "byte_fallback", {false});
  require(model, "ignore_merges", {false});
  require(file, "truncation", {});
  require(file, "padding", {});
  const Field decoder = file.at("decoder").object();
  if (decoder.at("type").text() != "ByteLevel") {
    fail("{}: {} is not supported; only ByteLevel is", decoder.path, decoder.at("type").text());
  }
}

std::vector<AddedToken> read_added_tokens(const Field& file) {
  std::vector<AddedToken> tokens;
  if (!file.json.contains("added_tokens")) return tokens;
  const Field list = file.at("added_tokens").array();
  std::set<std::string> contents;
  std::set<int32_t> ids;
  for (size_t i = 0; i < list.json.size(); ++i) {
    const Field entry = list.at(i).object();
    for (const char* flag : {"lstrip", "rstrip", "single_word"}) require(entry, flag, {false});
    // "normalized" may be anything: there is no normalizer.
    AddedToken token{entry.at("content").text(), entry.at("id").token_id(), false};
    if (entry.json.contains("special")) token.is_special = entry.json.at("special") == true;
    if (token.content.empty()) entry.at("content").refuse("a string that is not empty");
    if (!contents.insert(token.content).second) fail("{}: the content is given twice", entry.path);
    if (!ids.insert(token.id).second) fail("{}: id {} is given twice", entry.path, token.id);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

class VocabularyReader {
 public:
  VocabularyReader(const Field& model, const std::vector<AddedToken>& added_tokens)
      : model_(model), added_tokens_(added_tokens) {}

  void read(TokenizerParts* parts) {
    read_tokens(parts);
    const Field merges = model_.at("merges").array();
    parts->merges.reserve(merges.json.size());
    for (size_t rank = 0; rank < merges.json.size(); ++rank) {
      parts->merges.push_back(read_merge(merges.at(rank)));
    }
  }

 private:
  void read_tokens(TokenizerParts* parts) {
    const Field vocabulary = model_.at("vocab").object();
    std::unordered_map<int32_t, std::string> added;
    for (const AddedToken& token : added_tokens_) added[token.id] = token.content;
    std::set<int32_t> ids;
    ids_.reserve(vocabulary.json.size());
    for (const auto& [name, value] : vocabulary.json.items()) {
      const int32_t id = Field{value, vocabulary.path + "." + name}.token_id();
      if (!ids.insert(id).second) fail("{}: id {} is given twice", vocabulary.path, id);
      if (static_cast<size_t>(id) >= parts->tokens.size()) parts->tokens.resize(id + 1);
      ids_[name] = id;
      if (const auto token = added.find(id); token != added.end()) {
        if (token->second == name) continue;
        fail("{}: id {} is '{}', but the added token of this id is '{}'", vocabulary.path, id, name,
             token->second);
      }
      const auto bytes = from_byte_level(name);
      if (!bytes || bytes->empty()) {
        fail("{}: '{}' is neither in the byte-level alphabet nor an added token", vocabulary.path,
             name);
      }
      parts->tokens[id] = *bytes;
    }
  }

  BpeMerge read_merge(const Field& merge) const {
    std::string left, right;
    if (merge.json.is_array() && merge.json.size() == 2) {
      left = merge.at(size_t{0}).text();
      right = merge.at(1).text();
    } else if (merge.json.is_string()) {
      const std::string& text = merge.text();
      const size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
        merge.refuse("two tokens with a space between them");
      }
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else {
      merge.refuse("\"a b\" or [\"a\", \"b\"]");
    }
    return {id_of(merge, left), id_of(merge, right), id_of(merge, left + right)};
  }

  TokenId id_of(const Field& merge, const std::string& name) const {
    const auto id = ids_.find(name);
    if (id == ids_.end()) fail("{}: '{}' is not in the vocabulary", merge.path, name);
    return id->second;
  }

  const Field& model_;
  const std::vector<AddedToken>& added_tokens_;
  std::unordered_map<std::string, TokenId> ids_;
};

}  // namespace

TokenizerParts read_tokenizer_parts(std::string_view tokenizer_json, std::string_view source) {
  const SortedJson json = base::parse_sorted_json(tokenizer_json, source);
  const Field file{json, fmt::format("{}: ", source)};
  file.object();
  const Field model = file.at("model").object();
  check_model(file, model);
  check_normalizer(file);
  if (json.contains("post_processor") && !json.at("post_processor").is_null())
    check_post_processor(file.at("post_processor"));
  TokenizerParts parts;
  parts.splits = read_splits(file);
  parts.added_tokens = read_added_tokens(file);
  VocabularyReader(model, parts.added_tokens).read(&parts);
  return parts;
}

std::string write_tokenizer_json(const TokenizerParts& parts) {
  Json file = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  std::vector<std::string> names(parts.tokens.size());
  for (size_t id = 0; id < names.size(); ++id) names[id] = to_byte_level(parts.tokens[id]);
  file["added_tokens"] = Json::array();
  for (const AddedToken& token : parts.added_tokens) {
    if (static_cast<size_t>(token.id) < names.size()) names[token.id] = token.content;
    file["added_tokens"].push_back({{"id", token.id},
                                    {"content", token.content},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", token.is_special}});
  }
  file["normalizer"] = nullptr;
  Json stages = Json::array();
  for (const std::string& split : parts.splits) {
    stages.push_back({{"type", "Split"},
                      {"pattern", {{"Regex", split}}},
                      {"behavior", "Isolated"},
                      {"invert", false}});
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  stages.push_back(byte_level);
  file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", stages}};
  file["post_processor"] = nullptr;
  file["decoder"] = byte_level;
  // Filled through the object's own list: the ordered Json looks for a key before it adds one.
  Json::object_t vocabulary;
  for (size_t id = 0; id < names.size(); ++id) {
    if (!names[id].empty()) vocabulary.push_back({names[id], id});
  }
  Json merges = Json::array();
  for (const BpeMerge& merge : parts.merges) {
    merges.push_back(names[merge.left] + " " + names[merge.right]);
  }
  file["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false}};
  file["model"]["vocab"] = std::move(vocabulary);
  file["model"]["merges"] = std::move(merges);
  return file.dump(1);
}

}  // namespace fathom::text
