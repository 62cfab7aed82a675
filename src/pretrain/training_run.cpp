#include "pretrain/training_run.h"

#include <cmath>
#include <cstdio>
#include <memory>
#include <numbers>

#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include "base/check.h"
#include "base/file.h"
#include "base/file_lock.h"
#include "base/progress.h"
#include "model/checkpoint.h"
#include "model/verify.h"
#include "pretrain/checkpoint_writer.h"
#include "pretrain/resume.h"
#include "pretrain/retrieval.h"
#include "pretrain/schedule.h"
#include "pretrain/stop_signals.h"
#include "pretrain/trainer.h"
#include "text/bpe_trainer.h"
#include "text/corpus.h"

namespace fathom::pretrain {
namespace {

std::filesystem::path tokenizer_folder(const Recipe& recipe) { return recipe.data / "tokenizer"; }

// Loss in nats a token to bits a byte of text. A document's end is paid for, its beginning is free.
double bits_per_byte(double nats, const TokenRows& rows) {
  return nats / std::numbers::ln2 * rows.targets_per_byte();
}

// Decides how many steps a time-budgeted run takes, once, when its decay must begin.
class StepBudget {
 public:
  StepBudget(const TrainingRunOptions& options, TrainerState& state)
      : options_(options), state_(state) {}

  // True where it was decided just now.
  bool update() {
    if (!options_.minutes || state_.step < 10) return false;
    const double budget = *options_.minutes * 60, decay = options_.recipe.training.decay_fraction;
    const double rate = static_cast<double>(state_.step) / state_.seconds;
    if (state_.step >= (1 - decay) * static_cast<double>(state_.total_steps)) return false;
    if (state_.seconds < (1 - decay) * budget) return false;
    const double left = std::max(budget - state_.seconds, 1.0);
    const auto wanted = state_.step + static_cast<int64_t>(rate * left);
    state_.total_steps = std::min(state_.total_steps, wanted);
    return true;
  }

 private:
  const TrainingRunOptions& options_;
  TrainerState& state_;
};

struct Run {
  const TrainingRunOptions& options;
  RunFolder folder;
  TrainerState state;
  TokenRows train, validation;
  std::vector<RetrievalDocument> held_out;  // empty unless the recipe trains on retrieval
  model::RankGroup ranks;
  base::Stopwatch watch;
  double seconds_before = 0;
  CheckpointWriter checkpoints{ranks};  // last: its thread uses the folder
};

void report_step(Run& run, const StepReport& report, base::Progress* progress) {
  if (!run.ranks.is_first()) return;
  const TrainingRecipe& t = run.options.recipe.training;
  const auto tokens = static_cast<double>(tokens_before(t, run.state.step));
  if (report.is_skipped) {
    run.folder.append_metrics({{"step", run.state.step}, {"skipped", true}});
    return;
  }
  const Stage stage = run.options.recipe.stage;
  Json metrics = {{"step", run.state.step},
                  {"tokens", tokens},
                  {"learning_rate", report.learning_rate},
                  {"step_seconds", report.seconds},
                  {"seconds", run.state.seconds}};
  std::string line = fmt::format("step {}, lr {:.2e}", run.state.step, report.learning_rate);
  if (stage == Stage::kMtp) {
    line += fmt::format(", divergence {:.3f}, overlap {:.3f}", report.mtp_divergence,
                        report.mtp_overlap);
    metrics.update(
        {{"mtp_divergence", report.mtp_divergence}, {"mtp_overlap", report.mtp_overlap}});
  } else if (stage != Stage::kWarmup) {
    line += fmt::format(", loss {:.3f}, mtp {:.3f}", report.loss, report.mtp_loss);
    metrics.update({{"loss", report.loss}, {"mtp_loss", report.mtp_loss}});
  }
  if (stage != Stage::kWarmup) {
    line += fmt::format(", norm {:.2f}, maxvio {:.2f}", report.gradient_norm, report.max_violation);
    metrics.update(
        {{"gradient_norm", report.gradient_norm}, {"max_violation", report.max_violation}});
  }
  if (trains_indexer(stage)) {
    line += fmt::format(", indexer {:.3f}, its norm {:.2f}", report.indexer_loss,
                        report.indexer_gradient_norm);
    metrics.update({{"indexer_loss", report.indexer_loss},
                    {"indexer_gradient_norm", report.indexer_gradient_norm}});
  }
  if (stage == Stage::kWarmup) {
    line += fmt::format(", recall {:.3f}", report.indexer_recall);
    metrics["indexer_recall"] = report.indexer_recall;
  }
  run.folder.append_metrics(metrics);
  if (progress) progress->update(tokens, line);
}

[[noreturn]] void fail_as_not_finite(Run& run, std::string_view what) {
  run.checkpoints.wait();
  const auto last = run.folder.latest();
  fail("{} stage: {} is not finite at step {}; the last good checkpoint is {}",
       name_of(run.options.recipe.stage), what, run.state.step,
       last ? last->string() : "none (none was written yet)");
}

void validate(Run& run, const Trainer& trainer) {
  const Validation validation = trainer.validate(run.validation);
  const double nats = validation.loss;
  if (!std::isfinite(nats + validation.mtp_divergence)) fail_as_not_finite(run, "validation loss");
  if (!run.ranks.is_first()) return;
  const double bits = bits_per_byte(nats, run.validation);
  fmt::print(stderr, "\nstep {}: validation {:.4f} nats a token, {:.4f} bits per byte\n",
             run.state.step, nats, bits);
  Json metrics = {
      {"step", run.state.step}, {"validation_loss", nats}, {"validation_bits_per_byte", bits}};
  if (run.options.recipe.stage == Stage::kMtp) {
    fmt::print(stderr, "MTP against the model: divergence {:.4f} nats a token, overlap {:.4f}\n",
               validation.mtp_divergence, validation.mtp_overlap);
    metrics.update({{"validation_mtp_divergence", validation.mtp_divergence},
                    {"validation_mtp_overlap", validation.mtp_overlap}});
  }
  if (!run.held_out.empty()) {
    const auto retrieval =
        measure_retrieval(trainer.model(), run.held_out, trainer.validation_options());
    fmt::print(stderr, "retrieval: {:.3f} beyond the window ({}), {:.3f} within ({})\n",
               retrieval.beyond, retrieval.num_beyond, retrieval.within, retrieval.num_within);
    metrics["validation_retrieval_beyond"] = retrieval.beyond;
    metrics["validation_retrieval_within"] = retrieval.within;
  }
  if (!validation.attention_entropy.empty())
    metrics["validation_attention_entropy"] = validation.attention_entropy;
  if (!validation.indexer_loss.empty()) {
    fmt::print(stderr, "indexer by layer: KL {:.3f}, recall of attention's mass {:.3f}\n",
               fmt::join(validation.indexer_loss, " "), fmt::join(validation.indexer_recall, " "));
    metrics["validation_indexer_loss"] = validation.indexer_loss;
    metrics["validation_indexer_recall"] = validation.indexer_recall;
  }
  run.folder.append_metrics(metrics);
}

// What all ranks must see alike after a step.
struct Agreement {
  double seconds;         // of training, the first rank's: the time budget makes decisions of them
  bool is_asked_to_stop;  // any of them
};

Agreement agree(const Run& run, const StopSignals& signals) {
  const double seconds = run.ranks.is_first() ? run.seconds_before + run.watch.seconds() : 0;
  const double asked = signals.received() != 0 ? 1 : 0;
  const torch::Tensor sums = torch::tensor({seconds, asked}, torch::kDouble);
  run.ranks.all_reduce(sums);
  return {sums[0].item<double>(), sums[1].item<double>() > 0};
}

// Returns whether it was stopped before its end.
bool train(Run& run, Trainer& trainer, const StopSignals& signals) {
  const auto& t = run.options.recipe.training;
  const auto tokens_until = [&](int64_t step) {
    return static_cast<double>(tokens_before(t, step));
  };
  std::optional<base::Progress> progress;
  if (run.ranks.is_first())
    progress.emplace("pretrain", tokens_until(run.state.total_steps), "tokens",
                     tokens_until(run.state.step));
  StepBudget budget(run.options, run.state);
  const int64_t stop = run.options.stop_after_step.value_or(INT64_MAX);
  bool is_stopped = false;
  while (run.state.step < run.state.total_steps && run.state.step < stop && !is_stopped) {
    run.checkpoints.check();
    const base::Stopwatch step_watch;
    StepReport report = trainer.step(run.train, run.state.step, run.state.total_steps);
    report.seconds = step_watch.seconds();
    ++run.state.step;
    if (!std::isfinite(report.sum_of_losses() + report.gradient_norm +
                       report.indexer_gradient_norm))
      fail_as_not_finite(run, "loss");
    // Losses and norms are of the weights before the update; only finite ones may be saved.
    if (const auto weight = trainer.optimizer().non_finite_weight())
      fail_as_not_finite(run, *weight);
    const Agreement agreed = agree(run, signals);
    run.state.seconds = agreed.seconds;
    const bool is_total_new = budget.update();
    if (progress) progress->set_total(tokens_until(run.state.total_steps));
    const bool is_last = run.state.step == run.state.total_steps || run.state.step == stop;
    is_stopped = agreed.is_asked_to_stop && !is_last;
    // Nobody may be there any more to whom a step is reported.
    report_step(run, report, progress && !is_stopped ? &*progress : nullptr);
    const bool validates = is_last || run.state.step % t.validate_every == 0;
    if (validates && !is_stopped) validate(run, trainer);
    if (is_last || is_stopped || is_total_new || run.state.step % t.checkpoint_every == 0)
      run.checkpoints.start(run.folder, run.state, trainer.model(), trainer.optimizer(),
                            t.keep_checkpoints);
    // A new total is saved before the first step that depends on it.
    if (is_last || is_stopped || is_total_new) run.checkpoints.wait();
    if (validates && is_stopped) validate(run, trainer);  // now that it is saved
  }
  return is_stopped;
}

// The same, but for what a lost rank's error says; a signal that stops it ends the process.
void train_among_ranks(Run& run, Trainer& trainer) {
  try {
    const StopSignals signals(run.ranks.is_first());
    if (!train(run, trainer, signals)) return;
    run.ranks.barrier();
    if (run.ranks.is_first()) {
      const std::string message =
          fmt::format("stopped at step {}, saved in {}; the same command goes on from there\n",
                      run.state.step, run.options.run.string());
      std::fputs(message.c_str(), stderr);  // no error where nobody reads it
    }
    end_by(signals.received() != 0 ? signals.received() : SIGTERM);  // or another rank was sent one
  } catch (const model::RankLost& error) {
    const auto last = run.folder.latest();
    fail(
        "{} stage: {} at step {}; the last checkpoint is {}; start the same command again, with "
        "any number of ranks",
        name_of(run.options.recipe.stage), error.what(), run.state.step + 1,
        last ? last->string() : "none (none was written yet)");
  }
}

// Of training alone: validation reads the text as it stands.
FimOptions fim_options(const Recipe& recipe) {
  FimOptions fim{.rate = recipe.training.fim_rate,
                 .seed = recipe.training.seed,
                 .bos_token_id = recipe.model.bos_token_id,
                 .eos_token_id = recipe.model.eos_token_id};
  if (fim.rate > 0) fim.tokens = read_fim_tokens(tokenizer_folder(recipe));
  return fim;
}

void export_model(const TrainingRunOptions& options, const Trainer& trainer) {
  const auto& folder = *options.export_folder;
  model::save_checkpoint(trainer.model(), folder, torch::kBFloat16);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
    base::write_file_atomically(folder / name,
                                base::read_file(tokenizer_folder(options.recipe) / name));
  const Json generation = {{"bos_token_id", options.recipe.model.bos_token_id},
                           {"eos_token_id", options.recipe.model.eos_token_id},
                           {"do_sample", true},
                           {"temperature", 0.8},
                           {"top_p", 0.95}};
  base::write_file_atomically(folder / "generation_config.json", generation.dump(2) + "\n");
  const std::string written[] = {"tokenizer.json", "tokenizer_config.json",
                                 "generation_config.json"};
  model::add_checksums(folder, written);
  fmt::print(stderr, "wrote {}\n", folder.string());
}

}  // namespace

void prepare_data(const Recipe& recipe, const std::filesystem::path& recipe_path) {
  const bool has_tokenizer = std::filesystem::exists(tokenizer_folder(recipe) / "tokenizer.json");
  if (!has_tokenizer && recipe.tokenizer.vocab_size < text::smallest_vocab_size())
    fail("{}: \"tokenizer.vocab_size\" is {}; the bytes and special tokens alone are {}",
         recipe_path.string(), recipe.tokenizer.vocab_size, text::smallest_vocab_size());
  if (!std::filesystem::exists(recipe.data / "text" / "manifest.json"))
    text::build_corpus({.recipe = recipe_path, .output = recipe.data / "text"});
  for (const char* split : {"train", "validation"})  // throws where there is none
    text::corpus_files(recipe.data / "text", split);
  if (!has_tokenizer)
    text::train_tokenizer({.inputs = {recipe.data / "text"},
                           .output = tokenizer_folder(recipe),
                           .bpe = {.vocab_size = static_cast<int>(recipe.tokenizer.vocab_size)}});
  tokenize_corpus({recipe.data / "text", tokenizer_folder(recipe), recipe.data / "tokens"});
}

namespace {

model::RankGroup join_ranks(const TrainingRunOptions& options) {
  const RankPlace& place = options.place;
  return model::RankGroup::join(
      {place.rank, place.size, place.address, place.port,
       std::chrono::milliseconds(static_cast<int64_t>(1e3 * options.rank_timeout_seconds))});
}

// Continues from the checkpoint, if there is one.
void resume_state(Run& run, const std::optional<std::filesystem::path>& checkpoint) {
  const TrainingRunOptions& options = run.options;
  const TokenOrigin origin = token_origin(options.recipe.data / "tokens");
  run.state = {0,
               options.recipe.training.steps,
               0,
               options.recipe.source,
               options.init ? options.init->string() : "",
               origin};
  if (checkpoint) run.state = RunFolder::load_state(*checkpoint);
  // A rank that sees another folder, or an old one, would train another model.
  const torch::Tensor step = torch::full({1}, run.state.step, torch::kLong);
  run.ranks.broadcast(step, 0);
  if (step.item<int64_t>() != run.state.step)
    fail(
        "{}: rank {} finds a checkpoint of step {} and rank 0 of step {}; all ranks need the same "
        "folder",
        options.run.string(), run.ranks.rank(), run.state.step, step.item<int64_t>());
  if (!checkpoint) return;
  const bool is_init_known = run.state.init.has_value();
  go_on_with(run.state, options.recipe, options.init, options.run);
  check_same_origin(run.state, origin, options.run);
  run.seconds_before = run.state.seconds;
  if (!run.ranks.is_first()) return;
  fmt::print(stderr, "resuming {} at step {}\n", options.run.string(), run.state.step);
  if (options.init && !is_init_known)
    fmt::print(stderr, "--init {} is ignored: the run goes on from its checkpoint\n",
               options.init->string());
}

// What can be known before the data is gathered.
void check_run(const TrainingRunOptions& options) {
  const Recipe& recipe = options.recipe;
  if (options.minutes && recipe.training.schedule != "wsd")
    fail("--minutes needs \"training.schedule\": \"wsd\"; a {} must know its steps beforehand",
         recipe.training.schedule);
  const bool is_new = !std::filesystem::exists(options.run / "latest");
  if (is_new && !options.init && recipe.stage != Stage::kDense)
    fail("the {} stage begins with a trained model; name its folder with --init",
         name_of(recipe.stage));
  if (is_new && options.init && !std::filesystem::exists(*options.init / "config.json"))
    fail("--init {}: no config.json; expected the folder of a checkpoint", options.init->string());
  if (std::filesystem::exists(tokenizer_folder(recipe) / "tokenizer.json")) fim_options(recipe);
}

// A second process in the folder would mix its checkpoints and metrics with the first one's. Of
// several ranks, which share it, the first holds it for all.
std::unique_ptr<base::FileLock> lock_folder(const TrainingRunOptions& options,
                                            const model::RankGroup& ranks) {
  if (!ranks.is_first()) return nullptr;
  std::filesystem::create_directories(options.run);
  auto lock = base::FileLock::try_lock(options.run / "lock");
  if (!lock)
    fail(
        "{}: another process trains in this folder; wait for its end, or give --run another folder",
        options.run.string());
  return lock;
}

// A checkpoint, a run's folder or a place in one.
bool is_in_a_run(std::filesystem::path place) {
  using std::filesystem::exists;
  for (;; place = place.parent_path()) {
    if (exists(place / "trainer.json") ||
        (exists(place / "metrics.jsonl") && exists(place / "lock")))
      return true;
    if (place == place.parent_path()) return false;
  }
}

// The finished model's folder is made, and a file written there for a moment: what a long run would
// find out at its end.
void check_export(const std::filesystem::path& folder, const std::filesystem::path& run) {
  const auto place = std::filesystem::weakly_canonical(folder);
  const auto within_run = place.lexically_relative(std::filesystem::weakly_canonical(run));
  if (*within_run.begin() != ".." || is_in_a_run(place))
    fail(
        "--export {}: holds a run's checkpoints, whose f32 weights it would replace; name another "
        "folder",
        folder.string());
  try {
    std::filesystem::create_directories(folder);
    base::AtomicFile(folder / "config.json").write("{}");
  } catch (const std::exception& error) {
    fail("--export {}: the model could not be written there: {}", folder.string(), error.what());
  }
}

}  // namespace

void run_training(const TrainingRunOptions& options) {
  at::set_num_threads(1);  // its own sums would depend on OMP_NUM_THREADS
  const Recipe& recipe = options.recipe;
  const model::RankGroup ranks = join_ranks(options);
  const Ranks sharing{ranks, options.sequence_parallel, options.expert_parallel};
  check_run(options);
  check_ranks(sharing, recipe);
  const auto lock = lock_folder(options, ranks);
  if (ranks.is_first() && options.export_folder) check_export(*options.export_folder, options.run);
  if (options.prepare) ranks.after_first("prepare", options.prepare);
  const auto text = recipe.data / "tokens";
  check_tokens_fit(text, recipe.model);
  const bool has_retrieval = recipe.retrieval.share > 0;
  if (has_retrieval && ranks.size() > 1)
    fail("\"retrieval\": {} ranks; experiments on retrieval train on one", ranks.size());
  const auto tokens = has_retrieval ? mix_with_retrieval(recipe, text) : text;
  Run run{options,
          RunFolder(options.run),
          {},
          TokenRows(tokens, "train", recipe.training.sequence_length, fim_options(recipe)),
          TokenRows(tokens, "validation", recipe.training.sequence_length),
          has_retrieval ? held_out_documents(recipe, text) : std::vector<RetrievalDocument>(),
          ranks,
          {}};
  const auto checkpoint = run.folder.latest();
  resume_state(run, checkpoint);
  if (!checkpoint && options.init) check_same_tokenizer(*options.init, recipe);
  Trainer trainer = checkpoint     ? Trainer::resume(recipe, *checkpoint, sharing)
                    : options.init ? Trainer::begin_with(recipe, *options.init, sharing)
                                   : Trainer(recipe, sharing);
  if (ranks.is_first()) run.folder.begin_metrics(run.state);
  run.watch = {};
  train_among_ranks(run, trainer);
  if (ranks.is_first() && options.export_folder && run.state.step >= run.state.total_steps)
    export_model(options, trainer);
}

}  // namespace fathom::pretrain
