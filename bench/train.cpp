#include "bench/train.h"

#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <fstream>
#include <functional>
#include <set>

#include "base/check.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/parallel.h"
#include "base/random.h"
#include "bench/machine.h"
#include "bench/plot.h"
#include "bench/timing.h"
#include "model/checkpoint.h"
#include "pretrain/trainer.h"

namespace fathom::bench {
namespace {

model::TrainingBatch random_batch(const model::Config& config, int64_t length) {
  base::Random random(1, static_cast<uint64_t>(length));
  const auto draw = [&] {
    torch::Tensor tokens = torch::empty({length}, torch::kLong);
    for (int64_t i = 0; i < length; ++i)
      tokens.data_ptr<int64_t>()[i] =
          static_cast<int64_t>(random.below(static_cast<uint64_t>(config.vocab_size)));
    return tokens;
  };
  return {draw(), draw(), {length}};
}

model::TrainingBatch batch_of(const TrainOptions& options, const model::Config& config,
                              int64_t length) {
  if (options.tokens.empty()) return random_batch(config, length);
  const pretrain::TokenRows rows(options.tokens, "train", length);
  return pretrain::make_batch(rows, {rows.num_rows() / 2}, config.bos_token_id, false);
}

// From here on /proc/self/status counts the peak anew (proc_pid_clear_refs(5)).
void reset_peak() {
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << "5";
}

int64_t status_bytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(key + ":")) return std::stoll(line.substr(key.size() + 1)) * 1024;
  fail("/proc/self/status: no {}", key);
}

struct Step {
  double seconds = 0;
  double cpu_seconds = HUGE_VAL;  // of all threads: other work on the machine disturbs it less
  int64_t peak_bytes = 0;
};

void append_line(const std::filesystem::path& folder, int64_t length, const Step& step) {
  std::filesystem::create_directories(folder);
  const std::string of_length = fmt::format("_{}", length);
  const auto bytes = static_cast<double>(step.peak_bytes);
  const Json line = {{"tokens", length},
                     {"step_seconds", step.seconds},
                     {"step_cpu_seconds", step.cpu_seconds},
                     {"peak_megabytes", bytes / 1e6},
                     {"step_cpu_seconds" + of_length, step.cpu_seconds},
                     {"bytes_a_token" + of_length, bytes / static_cast<double>(length)}};
  const auto path = folder / "metrics.jsonl";
  const std::string before = std::filesystem::exists(path) ? base::read_file(path) : "";
  base::write_file_atomically(path, before + line.dump() + "\n");
}

struct Curve {
  std::string name;
  pretrain::Stage stage;
  PlotSeries seconds, megabytes;
};

void run_step(model::Model& model, const model::TrainingBatch& batch,
              const model::LossOptions& options) {
  model::language_model_loss(model, batch, options).total.backward();
  for (const auto& slot : model::tensor_slots(model.weights, model.config))
    slot.tensor->mutable_grad() = torch::Tensor();
}

Step measure_step(model::Model& model, const model::TrainingBatch& batch,
                  const model::LossOptions& options, int repeats) {
  Step step;
  const auto run = [&] { run_step(model, batch, options); };
  // Memory by itself: the pages given back before it are dear to get again.
  reset_peak();
  const int64_t before = resident_bytes();
  run();
  step.peak_bytes = status_bytes("VmHWM") - before;
  step.seconds = best_seconds({repeats, repeats}, [&](int) {
    const std::clock_t cpu = std::clock();
    run();
    step.cpu_seconds =
        std::min(step.cpu_seconds, static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC);
  });
  return step;
}

void check_options(const TrainOptions& options) {
  if (std::adjacent_find(options.lengths.begin(), options.lengths.end(), std::greater_equal<>()) !=
      options.lengths.end())
    fail("--lengths: expected ascending ones, each once");
  if (std::set(options.stages.begin(), options.stages.end()).size() != options.stages.size())
    fail("--stages: expected each stage once");
  check_can_draw(options.svg);
}

}  // namespace

Json measure_training(const TrainOptions& options) {
  check_options(options);
  if (options.num_threads > 0) base::set_num_threads(options.num_threads);
  base::keep_freed_memory();  // as training does
  model::Model model = model::load_checkpoint_for_training(options.model);
  if (options.index_topk > 0) model.config.index_topk = options.index_topk;
  model.config.max_position_embeddings = int64_t{1} << 24;
  std::vector<Curve> curves;
  for (const std::string& name : options.stages)
    for (const auto& [known, stage] : pretrain::kStages)
      if (known == name) curves.push_back({name, stage, {name, {}, -1}, {name, {}, -1}});
  // What a program's first step takes for good is not the memory of a length.
  if (!curves.empty() && !options.lengths.empty()) {
    pretrain::freeze(model, curves[0].stage);
    run_step(model, batch_of(options, model.config, options.lengths[0]),
             pretrain::loss_options(curves[0].stage, {}));
  }
  Json rows = Json::array();
  for (const int64_t length : options.lengths) {
    const auto batch = batch_of(options, model.config, length);
    Json row = {{"tokens", length}};
    for (Curve& curve : curves) {
      pretrain::freeze(model, curve.stage);
      const Step step =
          measure_step(model, batch, pretrain::loss_options(curve.stage, {}), options.repeats);
      row[curve.name] = {{"seconds", step.seconds},
                         {"cpu_seconds", step.cpu_seconds},
                         {"tokens_per_s", static_cast<double>(length) / step.seconds},
                         {"peak_bytes", step.peak_bytes}};
      if (!options.runs.empty()) append_line(options.runs / curve.name, length, step);
      const auto x = static_cast<double>(length);
      curve.seconds.points.emplace_back(x, step.seconds);
      curve.megabytes.points.emplace_back(x, static_cast<double>(step.peak_bytes) / 1e6);
    }
    if (row.contains("dense") && row.contains("sparse"))
      row["dense_over_sparse"] =
          row["dense"]["seconds"].get<double>() / row["sparse"]["seconds"].get<double>();
    rows.push_back(row);
  }
  if (!options.svg.empty()) {
    PlotPanel time{"One step, forward and backward", "tokens of the sequence", "seconds", {}, {}};
    PlotPanel memory{"Its memory at the peak", "tokens of the sequence", "MB", {}, {}};
    for (const Curve& curve : curves) {
      time.series.push_back(curve.seconds);
      memory.series.push_back(curve.megabytes);
    }
    base::write_file_atomically(options.svg, draw_svg({time, memory}));
  }
  const MachinePeaks peaks = measure_machine();
  return {{"model", options.model.filename().string()},
          {"threads", base::num_threads()},
          {"index_topk", model.config.index_topk},
          {"machine", {{"f32_gflop_per_s", peaks.f32_gflop_per_s}}},
          {"lengths", rows}};
}

}  // namespace fathom::bench
