#include "bench/train_steps.h"

#include <unistd.h>

#include <ctime>

#include "base/memory.h"
#include "base/parallel.h"
#include "base/progress.h"
#include "base/random.h"
#include "bench/timing.h"
#include "model/checkpoint.h"
#include "model/safetensors.h"
#include "pretrain/token_writer.h"
#include "pretrain/trainer.h"

namespace fathom::bench {
namespace {

namespace fs = std::filesystem;

// Documents of 100 to 1,099 random tokens, two for every row that is needed.
void write_random_documents(const pretrain::Recipe& recipe, int64_t num_rows,
                            const fs::path& folder) {
  base::Random random(recipe.training.seed);
  const auto& config = recipe.model;
  pretrain::TokenWriter writer(folder, "train", config.vocab_size);
  const int64_t wanted = num_rows * recipe.training.sequence_length + 1;
  for (int64_t written = 0; written < wanted;) {
    std::vector<int32_t> document = {static_cast<int32_t>(config.bos_token_id)};
    for (uint64_t i = 100 + random.below(1000); i > 0; --i)
      document.push_back(
          static_cast<int32_t>(2 + random.below(static_cast<uint64_t>(config.vocab_size - 2))));
    document.push_back(static_cast<int32_t>(config.eos_token_id));
    written += std::ssize(document);
    writer.add_document(document);
  }
  pretrain::write_token_summary(folder, {{"fingerprint", "random documents"},
                                         {"vocab_size", config.vocab_size},
                                         {"bos_token_id", config.bos_token_id},
                                         {"train", writer.finish(wanted)}});
}

void export_beginning(const TrainStepsOptions& options, const pretrain::Recipe& recipe,
                      const pretrain::Trainer& trainer, const pretrain::TokenRows& rows) {
  model::save_checkpoint(trainer.model(), options.export_folder / "model", torch::kFloat32);
  const auto& t = recipe.training;
  std::vector<int32_t> tokens;
  for (int64_t step = 0; step < options.steps; ++step)
    for (int64_t index :
         pretrain::rows_in_order(rows.num_rows(), step * t.batch_rows, t.batch_rows, t.seed))
      for (int64_t token : rows.row(index)) tokens.push_back(static_cast<int32_t>(token));
  const model::NamedTensor tensor{"tokens",
                                  {model::DType::kI32,
                                   {options.steps, t.batch_rows, t.sequence_length + 1},
                                   reinterpret_cast<const std::byte*>(tokens.data())}};
  model::write_safetensors(options.export_folder / "batch.safetensors", {&tensor, 1});
}

}  // namespace

Json measure_train_steps(const TrainStepsOptions& options) {
  if (options.num_threads > 0) base::set_num_threads(options.num_threads);
  base::keep_freed_memory();  // as training does
  const pretrain::Recipe recipe = pretrain::read_recipe(options.recipe, options.overrides);
  const auto& t = recipe.training;
  fs::path tokens = options.tokens;
  const fs::path scratch =
      fs::temp_directory_path() / fmt::format("fathom_train_steps_{}", ::getpid());
  if (tokens.empty()) {
    write_random_documents(recipe, 2 * options.steps * t.batch_rows, scratch);
    tokens = scratch;
  }
  pretrain::check_tokens_fit(tokens, recipe.model);
  const pretrain::TokenRows rows(tokens, "train", t.sequence_length);
  if (options.tokens.empty()) fs::remove_all(scratch);  // its shards stay mapped
  pretrain::Trainer trainer(recipe);
  if (!options.export_folder.empty()) export_beginning(options, recipe, trainer, rows);
  std::vector<double> losses, mtp_losses, seconds, cpu_seconds;
  for (int64_t step = 0; step < options.steps; ++step) {
    const base::Stopwatch watch;
    const std::clock_t cpu = std::clock();
    const pretrain::StepReport report = trainer.step(rows, step, t.steps);
    if (step > 0 || options.steps == 1) {
      seconds.push_back(watch.seconds());
      cpu_seconds.push_back(static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC);
    }
    losses.push_back(report.loss);
    mtp_losses.push_back(report.mtp_loss);
  }
  const int64_t tokens_per_step = t.batch_rows * t.sequence_length;
  const auto rate = [&](const std::vector<double>& of) {
    return static_cast<double>(tokens_per_step) / median(of);
  };
  return {{"recipe", options.recipe.filename().string()},
          {"threads", base::num_threads()},
          {"matrices", recipe.optimizer.matrices},
          {"tokens_per_step", tokens_per_step},
          {"loss", losses},
          {"mtp_loss", mtp_losses},
          {"seconds", seconds},
          {"tokens_per_s", rate(seconds)},
          {"tokens_per_cpu_s", rate(cpu_seconds)}};
}

}  // namespace fathom::bench
