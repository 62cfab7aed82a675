#include "pretrain/recipe.h"

#include <algorithm>
#include <functional>
#include <map>
#include <type_traits>

#include "base/check.h"

namespace fathom::pretrain {
namespace {

const char* expected_name(const bool&) { return "true or false"; }
const char* expected_name(const std::string&) { return "a string"; }
const char* expected_name(const double&) { return "a number"; }
const char* expected_name(const int64_t&) { return "an integer"; }
const char* expected_name(const std::vector<int64_t>&) { return "a list of integers"; }
const char* expected_name(const uint64_t&) { return "an integer of at least 0"; }

// One section's fields by name; reading refuses every other key.
class Section {
 public:
  Section(const Json& recipe, std::string name, std::string_view source)
      : name_(std::move(name)), source_(source) {
    if (recipe.contains(name_)) json_ = recipe[name_];
    if (!json_.is_object()) fail("{}: \"{}\" must be an object", source_, name_);
  }

  template <typename T>
  Section& field(const std::string& key, T& value) {
    known_[key] = true;
    if (!json_.contains(key)) return *this;
    const Json& found = json_[key];
    bool fits = found.is_number();
    if constexpr (std::is_same_v<T, bool>) fits = found.is_boolean();
    if constexpr (std::is_same_v<T, std::string>) fits = found.is_string();
    if constexpr (std::is_same_v<T, int64_t>) fits = found.is_number_integer();
    if constexpr (std::is_same_v<T, uint64_t>) fits = found.is_number_unsigned();
    if constexpr (std::is_same_v<T, std::vector<int64_t>>)
      fits = found.is_array() && std::all_of(found.begin(), found.end(), [](const Json& item) {
               return item.is_number_integer();
             });
    if (!fits)
      fail("{}: \"{}.{}\" is {}; expected {}", source_, name_, key, found.dump(),
           expected_name(value));
    value = found.get<T>();
    return *this;
  }

  void refuse_the_rest() const {
    for (const auto& [key, value] : json_.items())
      if (!known_.contains(key))
        fail("{}: \"{}.{}\" is not a known key; check its spelling", source_, name_, key);
  }

 private:
  std::string name_;
  std::string_view source_;
  Json json_ = Json::object();
  std::map<std::string, bool> known_;
};

void require(bool condition, std::string_view source, const std::string& what) {
  if (!condition) fail("{}: {}", source, what);
}

void check(const Recipe& r, std::string_view source) {
  require(!r.model.has_fp8_weights, source,
          "\"model.quantization_config\": FP8 weights cannot be trained; remove it");
  const TrainingRecipe& t = r.training;
  const OptimizerRecipe& o = r.optimizer;
  require(t.steps >= 1, source, "\"training.steps\" must be at least 1");
  require(
      t.sequence_length >= 2 && t.sequence_length <= r.model.max_position_embeddings, source,
      fmt::format("\"training.sequence_length\" is {}; expected 2 to max_position_embeddings = {}",
                  t.sequence_length, r.model.max_position_embeddings));
  require(t.micro_batch_rows >= 1 && t.batch_rows % t.micro_batch_rows == 0, source,
          fmt::format("\"training.batch_rows\" is {}; expected a multiple of micro_batch_rows = {}",
                      t.batch_rows, t.micro_batch_rows));
  require(t.batch_rows >= 1, source, "\"training.batch_rows\" must be at least 1");
  require(
      t.schedule == "wsd" || t.schedule == "cosine", source,
      fmt::format("\"training.schedule\" is \"{}\"; expected \"wsd\" or \"cosine\"", t.schedule));
  require(t.warmup_steps >= 0 && t.warmup_steps <= t.steps, source,
          fmt::format("\"training.warmup_steps\" is {}; expected 0 to steps = {}", t.warmup_steps,
                      t.steps));
  require(t.decay_fraction >= 0 && t.decay_fraction <= 1, source,
          "\"training.decay_fraction\" must lie in 0..1");
  require(t.final_fraction >= 0 && t.final_fraction <= 1, source,
          "\"training.final_fraction\" must lie in 0..1");
  require(
      t.mtp_weight >= 0 && t.expert_bias_rate >= 0 && t.balance_weight >= 0 &&
          t.indexer_weight >= 0,
      source,
      "\"training.mtp_weight\", \"balance_weight\", \"indexer_weight\" and \"expert_bias_rate\" "
      "must be at least 0");
  require(t.validate_every >= 1 && t.checkpoint_every >= 1 && t.keep_checkpoints >= 1, source,
          "\"training.validate_every\", \"checkpoint_every\" and \"keep_checkpoints\" must be at "
          "least 1");
  require(
      o.matrices == "muon" || o.matrices == "adamw", source,
      fmt::format("\"optimizer.matrices\" is \"{}\"; expected \"muon\" or \"adamw\"", o.matrices));
  require(o.learning_rate > 0 && o.epsilon > 0 && o.clip_norm > 0, source,
          "\"optimizer.learning_rate\", \"epsilon\" and \"clip_norm\" must be above 0");
  require(o.weight_decay >= 0, source, "\"optimizer.weight_decay\" must be at least 0");
  for (double beta : {o.beta1, o.beta2, o.muon_momentum})
    require(beta >= 0 && beta < 1, source,
            "\"optimizer.beta1\", \"beta2\" and \"muon_momentum\" must lie in 0..1, below 1");
  require(
      r.tokenizer.vocab_size == r.model.vocab_size, source,
      fmt::format("\"tokenizer.vocab_size\" is {} but \"model.vocab_size\" is {}; they must agree",
                  r.tokenizer.vocab_size, r.model.vocab_size));
}

void check_experiment(const Recipe& r, std::string_view source) {
  const RetrievalRecipe& t = r.retrieval;
  require(t.share >= 0 && t.share < 1, source, "\"retrieval.share\" must lie in 0..1, below 1");
  require(t.num_pairs >= 1 && t.num_queries >= 1 && t.validation_rows >= 1, source,
          "\"retrieval.num_pairs\", \"num_queries\" and \"validation_rows\" must be at least 1");
  require(t.num_queries <= t.num_pairs, source,
          fmt::format("\"retrieval.num_queries\" is {}; expected at most num_pairs = {}",
                      t.num_queries, t.num_pairs));
  require(t.share == 0 || t.num_pairs <= (r.model.vocab_size - 11) / 2, source,
          fmt::format("\"retrieval.num_pairs\" is {}; a vocabulary of {} has {} keys", t.num_pairs,
                      r.model.vocab_size, (r.model.vocab_size - 11) / 2));
  for (int64_t token : {t.pair_token, t.query_token})
    require(token >= 0 && token < r.model.vocab_size, source,
            fmt::format("\"retrieval.pair_token\" and \"query_token\": {} is not below "
                        "vocab_size = {}",
                        token, r.model.vocab_size));
  const std::string& rule = r.experiment.key_rule;
  require(rule == "indexer" || rule == "window" || rule == "random" || rule == "oracle", source,
          fmt::format("\"experiment.key_rule\" is \"{}\"; expected \"indexer\", \"window\", "
                      "\"random\" or \"oracle\"",
                      rule));
}

void apply_override(const std::string& assignment, Stage stage, Json& json) {
  const size_t equals = assignment.find('='), dot = assignment.find('.');
  if (equals == std::string::npos || dot == std::string::npos || dot > equals)
    fail("--set {}: expected section.key=value", assignment);
  const std::string section = assignment.substr(0, dot);
  const std::string key = assignment.substr(dot + 1, equals - dot - 1);
  const bool is_of_stage = stage != Stage::kDense &&
                           (section == "model" || section == "optimizer" || section == "training");
  Json& sections = is_of_stage ? json["stages"][std::string(name_of(stage))] : json;
  sections[section][key] = base::parse_json(assignment.substr(equals + 1), "--set " + assignment);
}

// The recipe of one stage: its own values in place of the dense stage's; its model is that of the
// stages before it, with what it changes. The dense stage's recipe is the file without "stages".
Json with_stage(Json json, Stage stage, std::string_view source) {
  const Json stages = json.contains("stages") ? json["stages"] : Json::object();
  json.erase("stages");
  if (stage == Stage::kDense) return json;
  const std::string name(name_of(stage));
  if (!stages.contains(name))
    fail("{}: \"stages.{}\" is missing; expected what this stage does otherwise", source, name);
  json["stage"] = name;
  for (const auto& [earlier, value] : kStages) {
    const Json sections = stages.value(std::string(earlier), Json::object());
    for (const auto& [section, values] : sections.items())
      if (section == "model" || value == stage)
        for (const auto& [key, changed] : values.items()) json[section][key] = changed;
    if (value == stage) break;
  }
  return json;
}

void check_stages(const Json& json, std::string_view source) {
  if (!json.contains("stages")) return;
  if (!json["stages"].is_object()) fail("{}: \"stages\" must be an object", source);
  for (const auto& [name, sections] : json["stages"].items()) {
    const bool is_known = std::any_of(std::begin(kStages) + 1, std::end(kStages),
                                      [&](const auto& stage) { return stage.first == name; });
    if (!is_known)
      fail("{}: \"stages.{}\" is not a known stage; expected extend, warmup or sparse", source,
           name);
    if (!sections.is_object()) fail("{}: \"stages.{}\" must be an object", source, name);
    for (const auto& [section, values] : sections.items())
      if ((section != "model" && section != "optimizer" && section != "training") ||
          !values.is_object())
        fail("{}: \"stages.{}.{}\" is not known; expected objects model, optimizer or training",
             source, name, section);
  }
}

}  // namespace

Recipe parse_recipe(const Json& file, std::string_view source, Stage stage) {
  if (!file.is_object()) fail("{}: a recipe is a JSON object", source);
  for (const auto& [key, value] : file.items())
    if (key != "corpus" && key != "data" && key != "tokenizer" && key != "model" &&
        key != "optimizer" && key != "training" && key != "stages" && key != "retrieval" &&
        key != "experiment")
      fail(
          "{}: \"{}\" is not a known key; expected corpus, data, tokenizer, model, optimizer, "
          "training, stages, retrieval or experiment",
          source, key);
  check_stages(file, source);
  const Json json = with_stage(file, stage, source);
  Recipe r;
  r.stage = stage;
  if (!json.contains("data") || !json["data"].is_string())
    fail("{}: \"data\" is missing; expected the folder for corpus and tokens", source);
  if (!json.contains("model")) fail("{}: \"model\" is missing; expected a model's config", source);
  r.data = json["data"].get<std::string>();
  Section(json, "tokenizer", source).field("vocab_size", r.tokenizer.vocab_size).refuse_the_rest();
  Section(json, "optimizer", source)
      .field("matrices", r.optimizer.matrices)
      .field("learning_rate", r.optimizer.learning_rate)
      .field("beta1", r.optimizer.beta1)
      .field("beta2", r.optimizer.beta2)
      .field("epsilon", r.optimizer.epsilon)
      .field("weight_decay", r.optimizer.weight_decay)
      .field("muon_momentum", r.optimizer.muon_momentum)
      .field("muon_per_head", r.optimizer.muon_per_head)
      .field("clip_norm", r.optimizer.clip_norm)
      .refuse_the_rest();
  Section(json, "training", source)
      .field("seed", r.training.seed)
      .field("steps", r.training.steps)
      .field("sequence_length", r.training.sequence_length)
      .field("batch_rows", r.training.batch_rows)
      .field("micro_batch_rows", r.training.micro_batch_rows)
      .field("document_masking", r.training.document_masking)
      .field("bf16_matmuls", r.training.bf16_matmuls)
      .field("schedule", r.training.schedule)
      .field("warmup_steps", r.training.warmup_steps)
      .field("decay_fraction", r.training.decay_fraction)
      .field("final_fraction", r.training.final_fraction)
      .field("mtp_weight", r.training.mtp_weight)
      .field("balance_weight", r.training.balance_weight)
      .field("indexer_weight", r.training.indexer_weight)
      .field("expert_bias_rate", r.training.expert_bias_rate)
      .field("skip_steps", r.training.skip_steps)
      .field("validate_every", r.training.validate_every)
      .field("checkpoint_every", r.training.checkpoint_every)
      .field("keep_checkpoints", r.training.keep_checkpoints)
      .refuse_the_rest();
  Section(json, "retrieval", source)
      .field("share", r.retrieval.share)
      .field("num_pairs", r.retrieval.num_pairs)
      .field("num_queries", r.retrieval.num_queries)
      .field("pair_token", r.retrieval.pair_token)
      .field("query_token", r.retrieval.query_token)
      .field("validation_rows", r.retrieval.validation_rows)
      .refuse_the_rest();
  Section(json, "experiment", source)
      .field("key_rule", r.experiment.key_rule)
      .field("detach_indexer_input", r.experiment.detach_indexer_input)
      .field("detach_teacher", r.experiment.detach_teacher)
      .field("attention_entropy", r.experiment.attention_entropy)
      .refuse_the_rest();
  r.model = model::parse_config(json["model"], fmt::format("{}: \"model\"", source));
  r.source = json;
  check(r, source);
  check_experiment(r, source);
  return r;
}

Recipe read_recipe(const std::filesystem::path& path, const std::vector<std::string>& overrides,
                   Stage stage) {
  Json json = base::read_json_file(path);
  for (const std::string& assignment : overrides) apply_override(assignment, stage, json);
  return parse_recipe(json, path.string(), stage);
}

}  // namespace fathom::pretrain
