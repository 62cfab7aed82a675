#include "pretrain/recipe.h"

#include <algorithm>
#include <map>
#include <type_traits>

#include "base/check.h"
#include "base/file.h"
#include "base/json_lines.h"
#include "pretrain/recipe_checks.h"
#include "pretrain/recipe_source.h"
#include "text/corpus_source.h"

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
  Section(const Json& recipe, std::string name, const RecipeSource& source)
      : name_(std::move(name)), source_(source) {
    if (recipe.contains(name_)) json_ = recipe[name_];
    if (!json_.is_object()) fail("{}: \"{}\" must be an object", source_.of(name_), name_);
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
      fail("{}: \"{}.{}\" is {}; expected {}", source_.of(name_ + "." + key), name_, key,
           found.dump(), expected_name(value));
    value = found.get<T>();
    return *this;
  }

  void refuse_the_rest() const {
    for (const auto& [key, value] : json_.items())
      if (!known_.contains(key))
        fail("{}: \"{}.{}\" is not a known key; check its spelling", source_.of(name_ + "." + key),
             name_, key);
  }

 private:
  std::string name_;
  const RecipeSource& source_;
  Json json_ = Json::object();
  std::map<std::string, bool> known_;
};

// What each phase of a stage does otherwise: one, unless the recipe lists several.
std::vector<Json> phases_of(const Json& file, std::string_view stage) {
  const Json stages = file.is_object() ? file.value("stages", Json()) : Json();
  if (!stages.is_object() || !stages.contains(stage)) return {};
  const Json& phases = stages[std::string(stage)];
  if (!phases.is_array()) return {phases};
  return std::vector<Json>(phases.begin(), phases.end());
}

// `phase` 0: the only one.
int64_t known_phase(const Json& file, const RecipeSource& source, int64_t phase) {
  const std::string name(name_of(source.stage));
  const auto count = std::max<int64_t>(1, std::ssize(phases_of(file, name)));
  if (phase == 0 && count > 1)
    fail("{}: \"stages.{}\" has {} phases; say which with --phase", source.of("stages." + name),
         name, count);
  if (phase > count)
    fail("--phase {}: \"stages.{}\" of {} has {}", phase, name, source.name,
         count == 1 ? "one phase" : fmt::format("{} phases", count));
  return std::max<int64_t>(phase, 1);
}

// The stage's own sections in the file, which may not be there yet.
Json& own_sections(const RecipeSource& source, Json& file) {
  Json& phases = file["stages"][std::string(name_of(source.stage))];
  return phases.is_array() ? phases.at(source.phase - 1) : phases;
}

void apply_override(const std::string& assignment, RecipeSource& source, Json& json) {
  const size_t equals = assignment.find('='), dot = assignment.find('.');
  if (equals == std::string::npos || dot == std::string::npos || dot > equals)
    fail("--set {}: expected section.key=value", assignment);
  const std::string section = assignment.substr(0, dot);
  const std::string key = assignment.substr(dot + 1, equals - dot - 1);
  const bool is_of_stage = source.stage != Stage::kDense &&
                           (section == "model" || section == "optimizer" || section == "training");
  Json& sections = is_of_stage ? own_sections(source, json) : json;
  Json& values = sections[section];
  if (!values.is_null() && !values.is_object())
    fail("--set {}: \"{}\" is no section of keys; change it in the recipe", assignment, section);
  values[key] = base::parse_json(assignment.substr(equals + 1), "--set " + assignment);
  source.overrides[section + "." + key] = "--set " + assignment;
}

// The recipe of one phase of a stage: its own values in place of the dense stage's; its model is
// that of the phases and stages before it, with what it changes. The dense stage's recipe is the
// file without "stages".
Json with_stage(Json json, const RecipeSource& source) {
  const Json file = json;
  json.erase("stages");
  if (source.stage == Stage::kDense) return json;
  const std::string name(name_of(source.stage));
  const auto own = phases_of(file, name);
  if (own.empty())
    fail("{}: \"stages.{}\" is missing; expected what this stage does otherwise",
         source.of("stages"), name);
  json["stage"] = name;
  if (own.size() > 1) json["phase"] = source.phase;
  // The dense stage's are numbers of its own steps.
  if (json.contains("training")) json["training"].erase("skip_steps");
  for (const auto& [earlier, stage] : kStages) {
    int64_t phase = 0;
    for (const Json& sections : phases_of(file, earlier)) {
      const bool is_own = stage == source.stage && ++phase == source.phase;
      for (const auto& [section, values] : sections.items())
        if (section == "model" || is_own)
          for (const auto& [key, changed] : values.items()) json[section][key] = changed;
      if (is_own) return json;
    }
  }
  return json;
}

void check_phase(const Json& sections, const std::string& place, const RecipeSource& source) {
  if (!sections.is_object()) fail("{}: \"{}\" must be an object", source.of(place), place);
  for (const auto& [section, values] : sections.items())
    if ((section != "model" && section != "optimizer" && section != "training") ||
        !values.is_object())
      fail("{}: \"{}.{}\" is not known; expected objects model, optimizer or training",
           source.of(place + "." + section), place, section);
}

void check_stages(const Json& json, const RecipeSource& source) {
  if (!json.contains("stages")) return;
  if (!json["stages"].is_object()) fail("{}: \"stages\" must be an object", source.of("stages"));
  for (const auto& [name, phases] : json["stages"].items()) {
    const bool is_known = std::any_of(std::begin(kStages) + 1, std::end(kStages),
                                      [&](const auto& stage) { return stage.first == name; });
    if (!is_known)
      fail("{}: \"stages.{}\" is not a known stage; expected extend, warmup, sparse or mtp",
           source.of("stages." + name), name);
    const std::string place = "stages." + name;
    if (!phases.is_array()) {
      check_phase(phases, place, source);
      continue;
    }
    if (phases.empty() || std::ssize(phases) > kMostPhases)
      fail("{}: \"{}\" lists {} phases; expected 1 to {}", source.of(place), place, phases.size(),
           kMostPhases);
    for (size_t i = 0; i < phases.size(); ++i)
      check_phase(phases[i], fmt::format("{}[{}]", place, i), source);
  }
}

OptimizerRecipe read_optimizer(const Json& json, const RecipeSource& source) {
  OptimizerRecipe o;
  Section(json, "optimizer", source)
      .field("matrices", o.matrices)
      .field("learning_rate", o.learning_rate)
      .field("beta1", o.beta1)
      .field("beta2", o.beta2)
      .field("epsilon", o.epsilon)
      .field("weight_decay", o.weight_decay)
      .field("embedding_weight_decay", o.embedding_weight_decay)
      .field("router_weight_decay", o.router_weight_decay)
      .field("norm_weight_decay", o.norm_weight_decay)
      .field("muon_momentum", o.muon_momentum)
      .field("muon_per_head", o.muon_per_head)
      .field("clip_norm", o.clip_norm)
      .refuse_the_rest();
  return o;
}

TrainingRecipe read_training(const Json& json, const RecipeSource& source) {
  TrainingRecipe t;
  Section(json, "training", source)
      .field("seed", t.seed)
      .field("steps", t.steps)
      .field("sequence_length", t.sequence_length)
      .field("batch_rows", t.batch_rows)
      .field("micro_batch_rows", t.micro_batch_rows)
      .field("document_masking", t.document_masking)
      .field("fim_rate", t.fim_rate)
      .field("bf16_matmuls", t.bf16_matmuls)
      .field("schedule", t.schedule)
      .field("warmup_steps", t.warmup_steps)
      .field("decay_fraction", t.decay_fraction)
      .field("final_fraction", t.final_fraction)
      .field("first_batch_rows", t.first_batch_rows)
      .field("batch_growth_steps", t.batch_growth_steps)
      .field("first_sequence_length", t.first_sequence_length)
      .field("length_growth_steps", t.length_growth_steps)
      .field("mtp_weight", t.mtp_weight)
      .field("late_mtp_weight", t.late_mtp_weight)
      .field("late_mtp_fraction", t.late_mtp_fraction)
      .field("balance_weight", t.balance_weight)
      .field("balance", t.balance)
      .field("indexer_weight", t.indexer_weight)
      .field("expert_bias_rate", t.expert_bias_rate)
      .field("fixed_bias_fraction", t.fixed_bias_fraction)
      .field("skip_steps", t.skip_steps)
      .field("validate_every", t.validate_every)
      .field("checkpoint_every", t.checkpoint_every)
      .field("keep_checkpoints", t.keep_checkpoints)
      .refuse_the_rest();
  return t;
}

RetrievalRecipe read_retrieval(const Json& json, const RecipeSource& source) {
  RetrievalRecipe r;
  Section(json, "retrieval", source)
      .field("share", r.share)
      .field("num_pairs", r.num_pairs)
      .field("num_queries", r.num_queries)
      .field("pair_token", r.pair_token)
      .field("query_token", r.query_token)
      .field("validation_rows", r.validation_rows)
      .refuse_the_rest();
  return r;
}

ExperimentRecipe read_experiment(const Json& json, const RecipeSource& source) {
  ExperimentRecipe e;
  Section(json, "experiment", source)
      .field("key_rule", e.key_rule)
      .field("detach_indexer_input", e.detach_indexer_input)
      .field("detach_teacher", e.detach_teacher)
      .field("attention_entropy", e.attention_entropy)
      .refuse_the_rest();
  return e;
}

void check_keys(const Json& file, const RecipeSource& source) {
  if (!file.is_object()) fail("{}: a recipe is a JSON object", source.name);
  for (const auto& [key, value] : file.items())
    if (key != "corpus" && key != "data" && key != "tokenizer" && key != "model" &&
        key != "optimizer" && key != "training" && key != "stages" && key != "retrieval" &&
        key != "experiment")
      fail(
          "{}: \"{}\" is not a known key; expected corpus, data, tokenizer, model, optimizer, "
          "training, stages, retrieval or experiment",
          source.of(key), key);
  const RecipeSource dense{.name = source.name, .lines = source.lines};
  for (const char* section : {"model", "optimizer", "training"})
    if (file.contains(section) && !file[section].is_object())
      fail("{}: \"{}\" must be an object", dense.of(section), section);
  check_stages(file, source);
}

// Keys and types of one stage's recipe.
Recipe read_sections(const Json& json, const RecipeSource& source) {
  Recipe r;
  r.stage = source.stage;
  r.phase = source.phase;
  if (!json.contains("data") || !json["data"].is_string())
    fail("{}: \"data\" is missing; expected the folder for corpus and tokens", source.of("data"));
  if (!json.contains("model"))
    fail("{}: \"model\" is missing; expected a model's config", source.name);
  r.data = json["data"].get<std::string>();
  // What text is gathered from; whether any is needed shows when there is none yet.
  if (json.contains("corpus"))
    text::parse_corpus(json["corpus"], [&](const std::string& key) { return source.of(key); });
  Section(json, "tokenizer", source).field("vocab_size", r.tokenizer.vocab_size).refuse_the_rest();
  r.optimizer = read_optimizer(json, source);
  r.training = read_training(json, source);
  r.retrieval = read_retrieval(json, source);
  r.experiment = read_experiment(json, source);
  r.model = model::parse_config(json["model"], [&](std::string_view field) {
    return fmt::format("{}: \"model\"", source.of(fmt::format("model.{}", field)));
  });
  r.source = json;
  return r;
}

// A stage should not find out that its keys are misspelt when those before it are trained.
void check_other_stages(const Json& file, const RecipeSource& source) {
  for (const auto& [name, stage] : kStages) {
    const auto count = stage == Stage::kDense ? 1 : std::ssize(phases_of(file, name));
    for (int64_t phase = 1; phase <= count; ++phase) {
      if (stage == source.stage && phase == source.phase) continue;
      const RecipeSource other{
          .name = source.name, .stage = stage, .phase = phase, .lines = source.lines};
      read_sections(with_stage(file, other), other);
    }
  }
}

Recipe parse(const Json& file, const RecipeSource& source) {
  check_keys(file, source);
  Recipe recipe = read_sections(with_stage(file, source), source);
  check_recipe(recipe, source);
  check_other_stages(file, source);
  return recipe;
}

}  // namespace

Recipe parse_recipe(const Json& json, std::string_view source, Stage stage, int64_t phase) {
  RecipeSource of{.name = std::string(source), .stage = stage};
  of.phase = known_phase(json, of, phase);
  return parse(json, of);
}

Recipe read_recipe(const std::filesystem::path& path, const std::vector<std::string>& overrides,
                   Stage stage, int64_t phase) {
  Json json = base::read_json_file(path);
  RecipeSource source{
      .name = path.string(), .stage = stage, .lines = base::json_lines(base::read_file(path))};
  check_keys(json, source);
  source.phase = known_phase(json, source, phase);
  for (const std::string& assignment : overrides) apply_override(assignment, source, json);
  return parse(json, source);
}

}  // namespace fathom::pretrain
