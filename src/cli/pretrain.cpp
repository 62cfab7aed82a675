#include <cstdlib>
#include <map>
#include <memory>

#include "base/check.h"
#include "base/memory.h"
#include "base/parallel.h"
#include "cli/commands.h"
#include "cli/real_range.h"
#include "cli/threads_option.h"
#include "pretrain/launch.h"
#include "pretrain/recipe.h"
#include "pretrain/training_run.h"

namespace fathom::cli {
namespace {

struct PretrainFlags {
  pretrain::Stage stage = pretrain::Stage::kDense;
  std::filesystem::path recipe;
  std::vector<std::string> overrides;
  std::optional<int64_t> steps;
  int64_t phase = 0;
  int num_threads = 0, num_processes = 1;
  pretrain::TrainingRunOptions run;
};

// Becomes --nproc ranks, unless this process is one of them already.
void start_ranks(PretrainFlags& flags) {
  flags.run.place = pretrain::rank_place([](const char* name) { return std::getenv(name); });
  if (flags.num_processes == 1 || flags.run.place.size == flags.num_processes) return;
  if (flags.run.place.size > 1)
    fail("--nproc is {}, but what started this process says that it is one of {} ranks",
         flags.num_processes, flags.run.place.size);
  std::exit(pretrain::launch_ranks(flags.num_processes, pretrain::own_command_line()));
}

void pretrain_model(PretrainFlags& flags) {
  start_ranks(flags);
  if (flags.num_threads == 0) flags.num_threads = pretrain::threads_per_rank(flags.run.place);
  base::set_num_threads(flags.num_threads);
  base::keep_freed_memory();
  if (flags.steps) flags.overrides.push_back("training.steps=" + std::to_string(*flags.steps));
  flags.run.recipe = pretrain::read_recipe(flags.recipe, flags.overrides, flags.stage, flags.phase);
  flags.run.prepare = [&] { pretrain::prepare_data(flags.run.recipe, flags.recipe); };
  pretrain::run_training(flags.run);
}

}  // namespace

void add_pretrain_command(CLI::App& app) {
  auto flags = std::make_shared<PretrainFlags>();
  const std::map<std::string, pretrain::Stage> stages(std::begin(pretrain::kStages),
                                                      std::end(pretrain::kStages));
  CLI::App* command = app.add_subcommand("pretrain", "Train a model from a recipe, or resume it");
  command->add_option("--stage", flags->stage, "Stage of training")
      ->transform(CLI::CheckedTransformer(stages, CLI::ignore_case))
      ->default_str("dense");
  command->add_option("--phase", flags->phase, "Phase of the stage, where the recipe lists several")
      ->check(CLI::Range(int64_t{1}, pretrain::kMostPhases));
  command->add_option("--recipe", flags->recipe, "Recipe file, for example recipes/nano.json")
      ->required();
  command
      ->add_option("--run", flags->run.run, "Folder for checkpoints and metrics; resumed if there")
      ->capture_default_str();
  command->add_option("--init", flags->run.init,
                      "Checkpoint folder whose model a new run begins with");
  command->add_option("--set", flags->overrides, "Override a value: section.key=value");
  command->add_option("--steps", flags->steps, "The same as --set training.steps=N");
  command->add_option("--minutes", flags->run.minutes, "Finish after so many minutes of training")
      ->check(real_range(0.01, 1e7));
  command
      ->add_option("--stop-after-step", flags->run.stop_after_step,
                   "Save and end at this step; the same command goes on later")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command
      ->add_option("--nproc", flags->num_processes,
                   "Train as so many ranks on this machine, each with its share of the cores")
      ->check(CLI::Range(1, 1024));
  command
      ->add_option("--sequence-parallel", flags->run.sequence_parallel,
                   "So many ranks share the tokens of each row")
      ->check(CLI::Range(1, 1024));
  command
      ->add_option("--expert-parallel", flags->run.expert_parallel,
                   "So many ranks share the experts")
      ->check(CLI::Range(1, 1024));
  command
      ->add_option("--rank-timeout", flags->run.rank_timeout_seconds,
                   "Seconds to wait for another rank's answer")
      ->check(real_range(1, 1e6))
      ->capture_default_str();
  add_threads_option(*command, flags->num_threads);
  command->add_option("--export", flags->run.export_folder,
                      "Folder for the finished model, in BF16 with its tokenizer");
  command->callback([flags] { pretrain_model(*flags); });
}

}  // namespace fathom::cli
