// A training run on disk: FOLDER/step-000250/ with the model (Hugging Face layout, f32),
// optimizer.safetensors and trainer.json; FOLDER/latest names the newest; FOLDER/metrics.jsonl, and
// the same numbers for TensorBoard under FOLDER/events/.
// Of several ranks, which share the folder, each writes the moments that it owns:
// optimizer-00001-of-00002.safetensors. Any number of ranks reads what any number wrote.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "base/json.h"
#include "model/transformer.h"
#include "pretrain/event_file.h"
#include "pretrain/optimizer.h"
#include "pretrain/token_data.h"

namespace fathom::pretrain {

struct TrainerState {
  int64_t step = 0;         // steps done
  int64_t total_steps = 0;  // where the learning rate reaches its end
  double seconds = 0;       // spent in training
  Json recipe;
  // --init of the beginning; empty: none. Older checkpoints do not say, nor of the tokens.
  std::optional<std::string> init = {};
  std::optional<TokenOrigin> tokens = {};
};

class RunFolder {
 public:
  explicit RunFolder(std::filesystem::path folder);

  // Everything is written under a temporary name, then renamed; then `latest` is replaced. A killed
  // process leaves the previous checkpoint in force. Keeps `keep` checkpoints, the newest up to
  // this one; those of later steps, left where `latest` was turned back, go first. Every rank calls
  // it with its own moments; the first writes everything else, and gives the checkpoint its name
  // when the files of all ranks are there.
  void save(const TrainerState& state, const model::Model& model,
            const std::vector<Optimizer::State>& optimizer, int64_t keep,
            const model::RankGroup& ranks = {}) const;

  std::optional<std::filesystem::path> latest() const;
  static TrainerState load_state(const std::filesystem::path& checkpoint);
  static std::vector<Optimizer::State> load_optimizer(const std::filesystem::path& checkpoint);

  // The lines of a metrics.jsonl, in order, without values that were not numbers (null). A last
  // line that a kill cut short, or that is being written, is left out; an Error names file and line
  // of any other that is not what append_metrics writes.
  static std::vector<Json> read_metrics(const std::filesystem::path& path);

  // Before anything is appended: forgets lines of steps beyond those done.
  void begin_metrics(const TrainerState& state);
  // One JSON object a line.
  void append_metrics(const Json& line);

 private:
  std::filesystem::path folder_;
  std::optional<EventFile> events_;
};

}  // namespace fathom::pretrain
