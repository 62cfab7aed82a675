// A training recipe: one JSON file that says everything a run needs, from corpus to schedule. Its
// "stages" say by name what each later stage does otherwise: keys of "optimizer" and "training" in
// place of the dense stage's, and of "model", which also holds for the stages after it. A stage in
// phases, such as an extension to 32K and then to 128K tokens, is a list of such objects.
// Unknown keys, wrong types and impossible values are refused before anything starts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "model/config.h"
#include "pretrain/stage.h"

namespace fathom::pretrain {

inline constexpr int64_t kMostPhases = 16;  // of a stage

struct TokenizerRecipe {
  int64_t vocab_size = 8192;
};

struct OptimizerRecipe {
  std::string matrices = "muon";  // "muon" or "adamw"; everything else is AdamW's
  double learning_rate = 2e-3;    // peak
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-10;
  double weight_decay = 0.1;          // of weight matrices
  double embedding_weight_decay = 0;  // of embedding and head
  double router_weight_decay = 0;     // of experts' gates, indexers' head weights
  double norm_weight_decay = 0;       // of norms and biases
  double muon_momentum = 0.95;
  bool muon_per_head = false;  // orthogonalise each head of MLA's up-projections by itself (GLM-5)
  double clip_norm = 1.0;
};

struct TrainingRecipe {
  uint64_t seed = 1;
  int64_t steps = 1000;
  int64_t sequence_length = 1024;
  int64_t batch_rows = 8;        // rows of a step
  int64_t micro_batch_rows = 8;  // rows of one forward and backward pass
  bool document_masking = true;  // documents packed into one row do not see each other
  double fim_rate = 0;           // share of documents reordered for fill-in-the-middle
  bool bf16_matmuls = true;
  std::string schedule = "wsd";  // or "cosine": see schedule.h
  int64_t warmup_steps = 50;
  double decay_fraction = 0.25;  // "wsd": of all steps, at the end
  double final_fraction = 0.05;  // of the peak learning rate, where either schedule ends
  // Rows of a step grow evenly from first_batch_rows to batch_rows over the first steps; 0: always
  // batch_rows.
  int64_t first_batch_rows = 0;
  int64_t batch_growth_steps = 0;
  // Rows are cut into sequences of first_sequence_length, doubled at even distances over the first
  // steps until they are sequence_length; 0: never cut.
  int64_t first_sequence_length = 0;
  int64_t length_growth_steps = 0;
  double mtp_weight = 0.3;
  double late_mtp_weight = 0.1;     // in place of mtp_weight over the last
  double late_mtp_fraction = 0;     // share of the steps
  double balance_weight = 1e-3;     // alpha of the balance loss, same section, eq. (17)
  std::string balance = "batch";    // what that is taken over; or "sequence": each row, eq. (18)
  double indexer_weight = 1;        // of the indexers' losses, where they are trained
  double expert_bias_rate = 1e-3;   // gamma of the report of V3, section 2.1.2
  double fixed_bias_fraction = 0;   // of the steps, at the end: gamma is 0
  std::vector<int64_t> skip_steps;  // whose batches are left out: no gradient, no update
  int64_t validate_every = 250;     // steps
  int64_t checkpoint_every = 250;
  int64_t keep_checkpoints = 2;
};

// Synthetic retrieval mixed into the text (retrieval.h): for experiments.
struct RetrievalRecipe {
  double share = 0;  // of the training rows; 0: none
  int64_t num_pairs = 64;
  int64_t num_queries = 32;
  int64_t pair_token = 2;  // what a pair and a query begin with: ids that text does not hold
  int64_t query_token = 2;
  int64_t validation_rows = 32;
};

// What the experiments change of the report's sparse training (model::ForwardOptions).
struct ExperimentRecipe {
  std::string key_rule = "indexer";  // or "window", "random", "oracle"
  bool detach_indexer_input = true;
  bool detach_teacher = true;
  bool attention_entropy = false;  // measured by every validation, layer by layer
};

struct Recipe {
  Stage stage = Stage::kDense;
  int64_t phase = 1;           // of the stage, from 1
  std::filesystem::path data;  // corpus, tokenizer and tokens are kept under it
  TokenizerRecipe tokenizer;
  model::Config model;
  OptimizerRecipe optimizer;
  TrainingRecipe training;
  RetrievalRecipe retrieval;
  ExperimentRecipe experiment;
  Json source;  // as read, with the stage's own values in their places
};

// `phase` 0: the stage's only one.
Recipe parse_recipe(const Json& json, std::string_view source, Stage stage = Stage::kDense,
                    int64_t phase = 0);
// `overrides` are "section.key=value" with JSON values: "training.steps=100"; they
// come last.
Recipe read_recipe(const std::filesystem::path& path, const std::vector<std::string>& overrides,
                   Stage stage = Stage::kDense, int64_t phase = 0);

}  // namespace fathom::pretrain
