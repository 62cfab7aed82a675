#include "pretrain/recipe_checks.h"

#include <string>

#include "base/check.h"

namespace fathom::pretrain {
namespace {

// Growing steps are counted one by one to find where a step begins.
constexpr int64_t kMostGrowthSteps = 1'000'000;

// Refuses impossible values, naming each by its key.
class Checker {
 public:
  explicit Checker(const RecipeSource& source) : source_(source) {}

  void require(bool condition, std::string_view key, const std::string& what) const {
    if (!condition) fail("{}: \"{}\" {}", source_.of(key), key, what);
  }
  template <typename T>
  void at_least(std::string_view key, T value, T least) const {
    require(value >= least, key, fmt::format("is {}; expected at least {}", value, least));
  }
  template <typename T>
  void between(std::string_view key, T value, T least, T most) const {
    require(value >= least && value <= most, key,
            fmt::format("is {}; expected {} to {}", value, least, most));
  }
  void one_of(std::string_view key, const std::string& value, const char* a, const char* b) const {
    require(value == a || value == b, key,
            fmt::format("is \"{}\"; expected \"{}\" or \"{}\"", value, a, b));
  }

 private:
  const RecipeSource& source_;
};

void check_schedules(const TrainingRecipe& t, const Checker& check) {
  check.one_of("training.schedule", t.schedule, "wsd", "cosine");
  check.require(t.warmup_steps >= 0 && t.warmup_steps <= t.steps, "training.warmup_steps",
                fmt::format("is {}; expected 0 to steps = {}", t.warmup_steps, t.steps));
  check.between("training.decay_fraction", t.decay_fraction, 0.0, 1.0);
  check.between("training.final_fraction", t.final_fraction, 0.0, 1.0);
  check.require(t.first_batch_rows >= 0 && t.first_batch_rows <= t.batch_rows &&
                    t.first_batch_rows % t.micro_batch_rows == 0,
                "training.first_batch_rows",
                fmt::format("is {}; expected 0 or a multiple of micro_batch_rows = {} up to "
                            "batch_rows = {}",
                            t.first_batch_rows, t.micro_batch_rows, t.batch_rows));
  check.require(t.first_sequence_length == 0 ||
                    (t.first_sequence_length >= 2 && t.first_sequence_length <= t.sequence_length),
                "training.first_sequence_length",
                fmt::format("is {}; expected 0 or 2 to sequence_length = {}",
                            t.first_sequence_length, t.sequence_length));
  check.between("training.batch_growth_steps", t.batch_growth_steps, int64_t{0}, kMostGrowthSteps);
  check.between("training.length_growth_steps", t.length_growth_steps, int64_t{0},
                kMostGrowthSteps);
  check.between("training.late_mtp_fraction", t.late_mtp_fraction, 0.0, 1.0);
  check.between("training.fixed_bias_fraction", t.fixed_bias_fraction, 0.0, 1.0);
}

void check_training(const TrainingRecipe& t, const model::Config& model, const Checker& check) {
  check.at_least("training.steps", t.steps, int64_t{1});
  check.require(t.sequence_length >= 2 && t.sequence_length <= model.max_position_embeddings,
                "training.sequence_length",
                fmt::format("is {}; expected 2 to max_position_embeddings = {}", t.sequence_length,
                            model.max_position_embeddings));
  check.at_least("training.batch_rows", t.batch_rows, int64_t{1});
  check.at_least("training.micro_batch_rows", t.micro_batch_rows, int64_t{1});
  check.require(t.batch_rows % t.micro_batch_rows == 0, "training.batch_rows",
                fmt::format("is {}; expected a multiple of micro_batch_rows = {}", t.batch_rows,
                            t.micro_batch_rows));
  check_schedules(t, check);
  for (const int64_t number : t.skip_steps)
    check.require(number >= 1 && number <= t.steps, "training.skip_steps",
                  fmt::format("names step {}; expected 1 to steps = {}", number, t.steps));
  check.between("training.fim_rate", t.fim_rate, 0.0, 1.0);
  check.one_of("training.balance", t.balance, "batch", "sequence");
  check.at_least("training.mtp_weight", t.mtp_weight, 0.0);
  check.at_least("training.late_mtp_weight", t.late_mtp_weight, 0.0);
  check.at_least("training.balance_weight", t.balance_weight, 0.0);
  check.at_least("training.indexer_weight", t.indexer_weight, 0.0);
  check.at_least("training.expert_bias_rate", t.expert_bias_rate, 0.0);
  check.at_least("training.validate_every", t.validate_every, int64_t{1});
  check.at_least("training.checkpoint_every", t.checkpoint_every, int64_t{1});
  check.at_least("training.keep_checkpoints", t.keep_checkpoints, int64_t{1});
}

void check_experiment(const Recipe& r, const Checker& check) {
  const RetrievalRecipe& t = r.retrieval;
  check.require(t.share >= 0 && t.share < 1, "retrieval.share",
                fmt::format("is {}; expected 0 to 1, below 1", t.share));
  check.at_least("retrieval.num_pairs", t.num_pairs, int64_t{1});
  check.at_least("retrieval.validation_rows", t.validation_rows, int64_t{1});
  check.require(t.num_queries >= 1 && t.num_queries <= t.num_pairs, "retrieval.num_queries",
                fmt::format("is {}; expected 1 to num_pairs = {}", t.num_queries, t.num_pairs));
  const int64_t num_keys = (r.model.vocab_size - 11) / 2;
  check.require(t.share == 0 || t.num_pairs <= num_keys, "retrieval.num_pairs",
                fmt::format("is {}; a vocabulary of {} has {} keys", t.num_pairs,
                            r.model.vocab_size, num_keys));
  const int64_t last = r.model.vocab_size - 1;
  check.between("retrieval.pair_token", t.pair_token, int64_t{0}, last);
  check.between("retrieval.query_token", t.query_token, int64_t{0}, last);
  const std::string& rule = r.experiment.key_rule;
  check.require(
      rule == "indexer" || rule == "window" || rule == "random" || rule == "oracle",
      "experiment.key_rule",
      fmt::format("is \"{}\"; expected \"indexer\", \"window\", \"random\" or \"oracle\"", rule));
}

void check_optimizer(const OptimizerRecipe& o, const Checker& check) {
  check.one_of("optimizer.matrices", o.matrices, "muon", "adamw");
  for (const auto& [key, value] : {std::pair{"optimizer.learning_rate", o.learning_rate},
                                   {"optimizer.epsilon", o.epsilon},
                                   {"optimizer.clip_norm", o.clip_norm}})
    check.require(value > 0, key, fmt::format("is {}; expected above 0", value));
  check.at_least("optimizer.weight_decay", o.weight_decay, 0.0);
  check.at_least("optimizer.embedding_weight_decay", o.embedding_weight_decay, 0.0);
  check.at_least("optimizer.router_weight_decay", o.router_weight_decay, 0.0);
  check.at_least("optimizer.norm_weight_decay", o.norm_weight_decay, 0.0);
  for (const auto& [key, value] : {std::pair{"optimizer.beta1", o.beta1},
                                   {"optimizer.beta2", o.beta2},
                                   {"optimizer.muon_momentum", o.muon_momentum}})
    check.require(value >= 0 && value < 1, key,
                  fmt::format("is {}; expected 0 to 1, below 1", value));
}

// What would leave a stage without anything to train, or without a loss to train it by.
void check_stage(const Recipe& r, const Checker& check) {
  check.require(r.stage != Stage::kMtp || r.model.num_nextn_predict_layers > 0,
                "model.num_nextn_predict_layers", "is 0; the mtp stage needs an MTP layer");
  if (r.stage != Stage::kWarmup) return;
  const std::string& rule = r.experiment.key_rule;
  check.require(rule == "indexer", "experiment.key_rule",
                fmt::format("is \"{}\"; the warmup stage trains the indexers alone and needs "
                            "\"indexer\"",
                            rule));
  check.require(r.training.indexer_weight > 0, "training.indexer_weight",
                "is 0; the warmup stage has no other loss");
}

}  // namespace

void check_recipe(const Recipe& r, const RecipeSource& source) {
  const Checker check(source);
  check.require(!r.model.has_fp8_weights, "model.quantization_config",
                "stands for FP8 weights, which cannot be trained; remove it");
  check.require(r.tokenizer.vocab_size == r.model.vocab_size, "tokenizer.vocab_size",
                fmt::format("is {} but \"model.vocab_size\" is {}; they must agree",
                            r.tokenizer.vocab_size, r.model.vocab_size));
  check_stage(r, check);
  check_training(r.training, r.model, check);
  check_optimizer(r.optimizer, check);
  check_experiment(r, check);
}

}  // namespace fathom::pretrain
