#include "model/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"

namespace fathom::model {
namespace {

// Far above every model: a product of two sizes stays far below what an int64 holds.
constexpr int64_t kLargestSize = 1 << 24;
constexpr int64_t kMostLayers = 1024;
constexpr int64_t kMostExperts = 1 << 17;  // of all layers together

constexpr const char* kScoringFuncs[] = {"sigmoid", "softmax"};
constexpr const char* kTopkMethods[] = {"noaux_tc", "group_limited_greedy", "greedy"};

// Reads fields one by one and remembers which, so that unknown ones can be refused by name.
class FieldReader {
 public:
  FieldReader(const Json& object, const FieldSource& source, std::string prefix = "")
      : object_(object), source_(source), prefix_(std::move(prefix)) {
    if (!object.is_object())
      fail("{}: {} must be a JSON object", source(prefix_), prefix_.empty() ? "a config" : prefix_);
  }

  const Json* find(const std::string& key) {
    seen_.insert(key);
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  int64_t integer(const std::string& key, std::optional<int64_t> otherwise = {}) {
    const Json* value = find(key);
    if (!value && otherwise) return *otherwise;
    if (!value)
      fail("{}: field \"{}{}\" is missing; expected an integer", source_(prefix_ + key), prefix_,
           key);
    if (!value->is_number_integer())
      fail("{}: field \"{}{}\" is {}; expected an integer", source_(prefix_ + key), prefix_, key,
           value->dump());
    return value->get<int64_t>();
  }

  int64_t between(const std::string& key, int64_t least, int64_t most,
                  std::optional<int64_t> otherwise = {}) {
    const int64_t value = integer(key, otherwise);
    if (value < least || value > most)
      fail("{}: field \"{}{}\" is {}; expected {} to {}", source_(prefix_ + key), prefix_, key,
           find(key)->dump(), least, most);
    return value;
  }

  int64_t size(const std::string& key, std::optional<int64_t> otherwise = {}) {
    return between(key, 1, kLargestSize, otherwise);
  }

  // 0 where the file says null, which it must say.
  int64_t size_or_null(const std::string& key) {
    if (!object_.contains(key))
      fail("{}: field \"{}{}\" is missing; expected an integer or null", source_(prefix_ + key),
           prefix_, key);
    return find(key) ? size(key) : 0;
  }

  double positive(const std::string& key, std::optional<double> otherwise = {}) {
    const double value = number(key, otherwise);
    if (value <= 0)
      fail("{}: field \"{}{}\" is {}; expected above 0", source_(prefix_ + key), prefix_, key,
           value);
    return value;
  }

  double number(const std::string& key, std::optional<double> otherwise = {}) {
    const Json* value = find(key);
    if (!value && otherwise) return *otherwise;
    if (!value)
      fail("{}: field \"{}{}\" is missing; expected a number", source_(prefix_ + key), prefix_,
           key);
    if (!value->is_number())
      fail("{}: field \"{}{}\" is {}; expected a number", source_(prefix_ + key), prefix_, key,
           value->dump());
    return value->get<double>();
  }

  bool boolean(const std::string& key, bool otherwise) {
    const Json* value = find(key);
    if (!value) return otherwise;
    if (!value->is_boolean())
      fail("{}: field \"{}{}\" is {}; expected true or false", source_(prefix_ + key), prefix_, key,
           value->dump());
    return value->get<bool>();
  }

  // An enumeration by the names of its values; absent, the first.
  template <typename Enum>
  Enum choice(const std::string& key, std::span<const char* const> names) {
    const Json* value = find(key);
    if (!value) return Enum{};
    const auto name = std::find_if(names.begin(), names.end(),
                                   [&](const char* known) { return *value == known; });
    if (name == names.end())
      fail("{}: field \"{}{}\" is {}; expected \"{}\"", source_(prefix_ + key), prefix_, key,
           value->dump(), fmt::join(names, "\" or \""));
    return static_cast<Enum>(name - names.begin());
  }

  // A field with one supported value.
  void require(const std::string& key, const Json& supported, bool may_be_absent = true) {
    const Json* value = find(key);
    if (!value && may_be_absent) return;
    if (!value)
      fail("{}: field \"{}{}\" is missing; expected {}", source_(prefix_ + key), prefix_, key,
           supported.dump());
    if (*value != supported)
      fail("{}: field \"{}{}\" is {}; only {} is supported", source_(prefix_ + key), prefix_, key,
           value->dump(), supported.dump());
  }

  void ignore(std::initializer_list<const char*> keys) { seen_.insert(keys.begin(), keys.end()); }

  void refuse_the_rest() const {
    for (const auto& [key, value] : object_.items())
      if (!seen_.contains(key))
        fail("{}: field \"{}{}\" is unknown; remove it if the model does not need it",
             source_(prefix_ + key), prefix_, key);
  }

 private:
  const Json& object_;
  const FieldSource& source_;
  std::string prefix_;
  std::set<std::string> seen_;
};

// prefix: "rope_scaling." or "rope_parameters.", whose theta is read elsewhere.
RopeScaling parse_yarn(const Json& json, const FieldSource& source, const std::string& prefix) {
  FieldReader fields(json, source, prefix);
  fields.require("type", "yarn");
  fields.require("rope_type", "yarn");
  fields.ignore({"rope_theta"});
  RopeScaling scaling;
  scaling.factor = fields.number("factor");
  scaling.original_max_position_embeddings = fields.size("original_max_position_embeddings");
  scaling.beta_fast = fields.positive("beta_fast", scaling.beta_fast);
  scaling.beta_slow = fields.positive("beta_slow", scaling.beta_slow);
  scaling.mscale = fields.number("mscale", 1.0);
  scaling.mscale_all_dim = fields.number("mscale_all_dim", 1.0);
  fields.refuse_the_rest();
  if (scaling.mscale != scaling.mscale_all_dim)
    fail("{}: {}mscale is {} and {}mscale_all_dim is {}; only equal values are supported",
         source(prefix + "mscale"), prefix, scaling.mscale, prefix, scaling.mscale_all_dim);
  if (scaling.factor < 1)
    fail("{}: {}factor is {}; expected at least 1", source(prefix + "factor"), prefix,
         scaling.factor);
  if (scaling.beta_fast <= scaling.beta_slow)
    fail("{}: {}beta_fast is {} and {}beta_slow is {}; expected beta_fast > beta_slow",
         source(prefix + "beta_fast"), prefix, scaling.beta_fast, prefix, scaling.beta_slow);
  return scaling;
}

// Transformers 5 writes rope_parameters where earlier ones wrote rope_theta and rope_scaling; some
// files have both.
void read_rope(FieldReader& fields, const FieldSource& source, Config& config) {
  const bool has_theta = fields.find("rope_theta") != nullptr;
  config.rope_theta = fields.positive("rope_theta", config.rope_theta);
  const Json* const scaling = fields.find("rope_scaling");
  if (scaling) config.rope_scaling = parse_yarn(*scaling, source, "rope_scaling.");
  const Json* const json = fields.find("rope_parameters");
  if (!json) return;
  FieldReader parameters(*json, source, "rope_parameters.");
  Config read;
  read.rope_theta = parameters.positive("rope_theta", config.rope_theta);
  const Json* const type = parameters.find("rope_type");
  if (type && *type != "default" && *type != "yarn")
    fail(
        "{}: field \"rope_parameters.rope_type\" is {}; only \"default\" and \"yarn\" are "
        "supported",
        source("rope_parameters.rope_type"), type->dump());
  if (!type || *type != "default")
    read.rope_scaling = parse_yarn(*json, source, "rope_parameters.");
  else
    parameters.refuse_the_rest();
  const char* const contradicted = has_theta && read.rope_theta != config.rope_theta ? "rope_theta"
                                   : scaling && read.rope_scaling != config.rope_scaling
                                       ? "rope_scaling"
                                       : nullptr;
  if (contradicted)
    fail("{}: rope_parameters and {} say different things; keep the one that is meant",
         source("rope_parameters"), contradicted);
  config.rope_theta = read.rope_theta;
  config.rope_scaling = read.rope_scaling;
}

bool parse_quantization(const Json* json, const FieldSource& source) {
  if (!json) return false;
  FieldReader fields(*json, source, "quantization_config.");
  fields.require("quant_method", "fp8", false);
  fields.require("fmt", "e4m3");
  fields.require("activation_scheme", "dynamic");
  fields.require("scale_fmt", "ue8m0");
  fields.require("weight_block_size", Json::array({128, 128}), false);
  fields.ignore({"modules_to_not_convert"});
  fields.refuse_the_rest();
  return true;
}

// Fields that say nothing of the model; older versions of Transformers write all that they know.
void ignore_what_is_not_of_the_model(FieldReader& fields) {
  // The file, and the program that wrote it.
  fields.ignore({"torch_dtype", "dtype", "transformers_version", "auto_map", "_name_or_path",
                 "_attn_implementation_autoset", "use_cache", "tokenizer_class", "torchscript",
                 "use_bfloat16", "tf_legacy_loss"});
  // Its training, and heads for other tasks.
  fields.ignore({"ep_size", "pretraining_tp", "aux_loss_alpha", "seq_aux", "head_dim",
                 "pad_token_id", "sep_token_id", "chunk_size_feed_forward", "pruned_heads",
                 "finetuning_task", "problem_type", "task_specific_params", "id2label",
                 "label2id"});
  // Other kinds of model.
  fields.ignore({"is_decoder", "is_encoder_decoder", "tie_encoder_decoder", "add_cross_attention",
                 "cross_attention_hidden_size", "decoder_start_token_id", "output_attentions",
                 "output_hidden_states", "return_dict"});
  // Generation, of which generation_config.json says.
  fields.ignore({"bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample",
                 "early_stopping", "encoder_no_repeat_ngram_size",
                 "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
                 "length_penalty", "max_length", "min_length", "no_repeat_ngram_size"});
  fields.ignore({"num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "prefix",
                 "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
                 "suppress_tokens", "temperature", "top_k", "top_p", "typical_p"});
}

void read_attention(FieldReader& fields, Config& config) {
  config.num_attention_heads = fields.size("num_attention_heads");
  config.q_lora_rank = fields.size_or_null("q_lora_rank");
  config.kv_lora_rank = fields.size("kv_lora_rank");
  config.qk_nope_head_dim = fields.size("qk_nope_head_dim");
  config.qk_rope_head_dim = fields.size("qk_rope_head_dim");
  config.v_head_dim = fields.size("v_head_dim");
  fields.require("qk_head_dim", config.qk_head_dim());
  fields.require("num_key_value_heads", config.num_attention_heads);
  fields.require("attention_bias", false);
  fields.require("attention_dropout", 0.0);
  fields.require("rope_interleave", true);
  config.index_n_heads = fields.size("index_n_heads");
  config.index_head_dim = fields.size("index_head_dim");
  config.index_topk = fields.size("index_topk");
  config.indexer_rope_interleave = fields.boolean("indexer_rope_interleave", false);
}

void read_experts(FieldReader& fields, Config& config) {
  config.first_k_dense_replace = fields.between("first_k_dense_replace", 0, kMostLayers);
  config.n_routed_experts = fields.size("n_routed_experts");
  config.n_shared_experts = fields.size("n_shared_experts");
  config.num_experts_per_tok = fields.size("num_experts_per_tok");
  config.moe_intermediate_size = fields.size("moe_intermediate_size");
  config.n_group = fields.size("n_group", 1);
  config.topk_group = fields.size("topk_group", 1);
  config.norm_topk_prob = fields.boolean("norm_topk_prob", true);
  config.routed_scaling_factor = fields.positive("routed_scaling_factor", 1.0);
  fields.require("moe_layer_freq", 1);
  config.scoring_func = fields.choice<ScoringFunc>("scoring_func", kScoringFuncs);
  config.topk_method = fields.choice<TopkMethod>("topk_method", kTopkMethods);
}

void check_at_most(const FieldSource& source, const char* a, int64_t a_value, const char* b,
                   int64_t b_value) {
  if (a_value > b_value)
    fail("{}: {} is {} but {} is {}; expected {} <= {}", source(a), a, a_value, b, b_value, a, b);
}

void check_groups(const Config& c, const FieldSource& source) {
  check_at_most(source, "topk_group", c.topk_group, "n_group", c.n_group);
  if (c.n_routed_experts % c.n_group != 0)
    fail("{}: n_routed_experts is {} and n_group is {}; expected a multiple",
         source("n_routed_experts"), c.n_routed_experts, c.n_group);
  check_at_most(source, "num_experts_per_tok", c.num_experts_per_tok,
                "topk_group * n_routed_experts / n_group",
                c.topk_group * (c.n_routed_experts / c.n_group));
  if (c.topk_method == TopkMethod::kNoauxTc && c.n_group > 1 && c.n_routed_experts / c.n_group < 2)
    fail("{}: n_group is {} of {} experts; expected at least 2 experts a group", source("n_group"),
         c.n_group, c.n_routed_experts);
}

void check_contradictions(const Config& c, const FieldSource& source) {
  const auto at_most = [&](const char* a, int64_t a_value, const char* b, int64_t b_value) {
    check_at_most(source, a, a_value, b, b_value);
  };
  at_most("first_k_dense_replace", c.first_k_dense_replace, "num_hidden_layers",
          c.num_hidden_layers);
  at_most("num_experts_per_tok", c.num_experts_per_tok, "n_routed_experts", c.n_routed_experts);
  at_most("qk_rope_head_dim", c.qk_rope_head_dim, "index_head_dim", c.index_head_dim);
  if (c.topk_method != TopkMethod::kGreedy) check_groups(c, source);
  if (c.qk_rope_head_dim % 2 != 0)
    fail("{}: qk_rope_head_dim is {}; expected an even number", source("qk_rope_head_dim"),
         c.qk_rope_head_dim);
  if ((c.index_head_dim & (c.index_head_dim - 1)) != 0)
    fail("{}: index_head_dim is {}; expected a power of two (Hadamard transform)",
         source("index_head_dim"), c.index_head_dim);
  at_most("num_hidden_layers * n_routed_experts", c.num_hidden_layers * c.n_routed_experts,
          "the most experts supported", kMostExperts);
  at_most("bos_token_id", c.bos_token_id, "vocab_size - 1", c.vocab_size - 1);
  at_most("eos_token_id", c.eos_token_id, "vocab_size - 1", c.vocab_size - 1);
  if (c.rope_scaling)
    at_most("rope_scaling.original_max_position_embeddings",
            c.rope_scaling->original_max_position_embeddings, "max_position_embeddings",
            c.max_position_embeddings);
}

}  // namespace

double Config::softmax_scale() const {
  const double scale = 1 / std::sqrt(static_cast<double>(qk_head_dim()));
  if (!rope_scaling || max_position_embeddings <= rope_scaling->original_max_position_embeddings)
    return scale;
  const double mscale = 0.1 * rope_scaling->mscale_all_dim * std::log(rope_scaling->factor) + 1;
  return scale * mscale * mscale;
}

Config parse_config(const Json& json, const FieldSource& source) {
  FieldReader fields(json, source);
  fields.require("model_type", "deepseek_v32", false);
  fields.require("architectures", Json::array({"DeepseekV32ForCausalLM"}));
  Config config;
  config.vocab_size = fields.size("vocab_size");
  config.hidden_size = fields.size("hidden_size");
  config.num_hidden_layers = fields.between("num_hidden_layers", 1, kMostLayers);
  config.num_nextn_predict_layers = fields.between("num_nextn_predict_layers", 0, 1, 0);
  config.intermediate_size = fields.size("intermediate_size");
  config.max_position_embeddings = fields.size("max_position_embeddings");
  config.rms_norm_eps = fields.positive("rms_norm_eps", 1e-6);
  read_rope(fields, source, config);
  read_attention(fields, config);
  read_experts(fields, config);
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  config.bos_token_id = fields.between("bos_token_id", 0, kLargestSize, 0);
  config.eos_token_id = fields.between("eos_token_id", 0, kLargestSize, 1);
  config.initializer_range = fields.positive("initializer_range", config.initializer_range);
  config.has_fp8_weights = parse_quantization(fields.find("quantization_config"), source);
  fields.require("hidden_act", "silu");
  fields.require("mlp_bias", false);
  fields.require("use_mla", true);
  fields.require("tie_word_embeddings", false);
  ignore_what_is_not_of_the_model(fields);
  fields.refuse_the_rest();
  check_contradictions(config, source);
  return config;
}

Config parse_config(const Json& json, std::string_view source) {
  return parse_config(json, [&](std::string_view) { return std::string(source); });
}

Config read_config(const std::filesystem::path& config_json) {
  return parse_config(base::read_json_file(config_json), config_json.string());
}

Json to_json(const Config& c) {
  Json json = {{"architectures", {"DeepseekV32ForCausalLM"}},
               {"model_type", "deepseek_v32"},
               {"attention_bias", false},
               {"attention_dropout", 0.0},
               {"bos_token_id", c.bos_token_id},
               {"eos_token_id", c.eos_token_id},
               {"first_k_dense_replace", c.first_k_dense_replace},
               {"hidden_act", "silu"},
               {"hidden_size", c.hidden_size},
               {"index_head_dim", c.index_head_dim},
               {"index_n_heads", c.index_n_heads},
               {"index_topk", c.index_topk},
               {"initializer_range", c.initializer_range},
               {"intermediate_size", c.intermediate_size},
               {"kv_lora_rank", c.kv_lora_rank},
               {"max_position_embeddings", c.max_position_embeddings},
               {"moe_intermediate_size", c.moe_intermediate_size},
               {"moe_layer_freq", 1},
               {"n_group", c.n_group},
               {"n_routed_experts", c.n_routed_experts},
               {"n_shared_experts", c.n_shared_experts},
               {"norm_topk_prob", c.norm_topk_prob},
               {"num_attention_heads", c.num_attention_heads},
               {"num_experts_per_tok", c.num_experts_per_tok},
               {"num_hidden_layers", c.num_hidden_layers},
               {"num_key_value_heads", c.num_attention_heads},
               {"num_nextn_predict_layers", c.num_nextn_predict_layers},
               {"q_lora_rank", c.q_lora_rank > 0 ? Json(c.q_lora_rank) : Json()},
               {"qk_nope_head_dim", c.qk_nope_head_dim},
               {"qk_rope_head_dim", c.qk_rope_head_dim},
               {"rms_norm_eps", c.rms_norm_eps},
               {"rope_theta", c.rope_theta},
               {"routed_scaling_factor", c.routed_scaling_factor},
               {"scoring_func", kScoringFuncs[static_cast<size_t>(c.scoring_func)]},
               {"tie_word_embeddings", c.tie_word_embeddings},
               {"topk_group", c.topk_group},
               {"topk_method", kTopkMethods[static_cast<size_t>(c.topk_method)]},
               {"torch_dtype", "bfloat16"},
               {"use_cache", true},
               {"v_head_dim", c.v_head_dim},
               {"vocab_size", c.vocab_size}};
  if (c.indexer_rope_interleave) json["indexer_rope_interleave"] = true;
  if (const auto& r = c.rope_scaling)
    json["rope_scaling"] = {
        {"type", "yarn"},
        {"factor", r->factor},
        {"beta_fast", r->beta_fast},
        {"beta_slow", r->beta_slow},
        {"mscale", r->mscale},
        {"mscale_all_dim", r->mscale_all_dim},
        {"original_max_position_embeddings", r->original_max_position_embeddings}};
  if (c.has_fp8_weights)
    json["quantization_config"] = {{"activation_scheme", "dynamic"},
                                   {"fmt", "e4m3"},
                                   {"quant_method", "fp8"},
                                   {"scale_fmt", "ue8m0"},
                                   {"weight_block_size", {128, 128}}};
  return json;
}

}  // namespace fathom::model
