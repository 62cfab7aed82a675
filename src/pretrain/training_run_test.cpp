#include "pretrain/training_run.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <set>
#include <sstream>
#include <thread>

#include "base/check.h"
#include "base/file_lock.h"
#include "base/parallel.h"
#include "model/safetensors.h"
#include "model/verify.h"
#include "pretrain/schedule.h"
#include "pretrain/test_data.h"
#include "pretrain/token_data.h"
#include "pretrain/trainer.h"
#include "text/bpe_trainer.h"

namespace fathom::pretrain {
namespace {

namespace fs = std::filesystem;

std::vector<Json> read_metrics(const fs::path& run, const std::string& key) {
  std::vector<Json> lines;
  std::istringstream text(base::read_file(run / "metrics.jsonl"));
  for (std::string line; std::getline(text, line);) {
    const Json json = Json::parse(line);
    if (json.contains(key)) lines.push_back(json);
  }
  return lines;
}

Json trainer_json(const fs::path& run) {
  std::string name = base::read_file(run / "latest");
  name.pop_back();
  return base::read_json_file(run / name / "trainer.json");
}

TEST(PrepareData, RefusesAVocabularyWithoutRoomForTheBytesBeforeItGathersText) {
  const auto folder = empty_folder("small_vocabulary");
  try {
    prepare_data(parse_recipe(tiny_recipe(folder / "data"), "r.json"), "r.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "r.json: \"tokenizer.vocab_size\" is 64; the bytes and special tokens alone are "
                 "267");
  }
  EXPECT_FALSE(fs::exists(folder / "data"));
}

class TrainingRun : public testing::Test {
 protected:
  // The folder is not emptied: a death test's child process passes here, too.
  TrainingRun() : folder_(fs::path(testing::TempDir()) / ("fathom_training_" + this_test())) {
    json_ = tiny_recipe(folder_);
    base::set_num_threads(1);  // more would only wait for one another
  }
  void start_anew() {
    fs::remove_all(folder_);
    write_synthetic_tokens(folder_ / "tokens");
  }
  TrainingRunOptions options(const std::string& run) const {
    TrainingRunOptions options;
    options.recipe = parse_recipe(json_, "test");
    options.run = folder_ / run;
    return options;
  }
  void expect_equal_checkpoints(const std::string& step) const {
    for (const char* file : {"model.safetensors", "optimizer.safetensors"})
      EXPECT_TRUE(base::read_file(folder_ / "straight" / step / file) ==
                  base::read_file(folder_ / "resumed" / step / file))
          << file;
  }

  fs::path folder_;
  Json json_;
};

TEST_F(TrainingRun, GoldenRun) {
  start_anew();
  run_training(options("run"));
  struct Row {
    double loss, mtp_loss;
  };
  const Row golden[] = {
      {4.1684, 4.1733}, {4.0089, 4.1327}, {3.6621, 3.9677}, {3.3483, 3.8390}, {3.1024, 3.7270},
      {2.9461, 3.6304}, {2.7518, 3.5412}, {2.5054, 3.3511}, {2.4828, 3.2884}, {2.3576, 3.1859},
  };
  const auto lines = read_metrics(folder_ / "run", "loss");
  ASSERT_EQ(lines.size(), std::size(golden));
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["step"], i + 1);
    // Kernels of another instruction set may round differently.
    EXPECT_NEAR(lines[i]["loss"].get<double>(), golden[i].loss, 3e-3) << i;
    EXPECT_NEAR(lines[i]["mtp_loss"].get<double>(), golden[i].mtp_loss, 3e-3) << i;
  }
  const auto validations = read_metrics(folder_ / "run", "validation_bits_per_byte");
  ASSERT_EQ(validations.size(), 2u);
  const TokenRows rows(folder_ / "tokens", "validation", 32);
  EXPECT_NEAR(
      validations[1]["validation_bits_per_byte"].get<double>(),
      validations[1]["validation_loss"].get<double>() / std::numbers::ln2 * rows.targets_per_byte(),
      1e-9);
  EXPECT_LT(validations[1]["validation_loss"], validations[0]["validation_loss"]);
}

// Ends this process as soon as a step's metrics are written, whatever it does by then.
[[noreturn]] void train_until_killed(const TrainingRunOptions& options, int64_t step) {
  std::thread([run = options.run, step] {
    for (;;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (!fs::exists(run / "metrics.jsonl")) continue;
      const std::string text = base::read_file(run / "metrics.jsonl");
      if (text.find(fmt::format("{{\"step\":{},", step)) != std::string::npos) raise(SIGKILL);
    }
  }).detach();
  run_training(options);
  std::this_thread::sleep_for(std::chrono::seconds(10));
  abort();
}

TEST_F(TrainingRun, T14FiftyStepsResumeToTheSameBitsAfterSigkill) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  if (!testing::internal::InDeathTestChild()) start_anew();
  json_["training"]["steps"] = 50;
  json_["training"]["checkpoint_every"] = 7;
  EXPECT_EXIT(train_until_killed(options("resumed"), 17), testing::KilledBySignal(SIGKILL), "");
  const int64_t step = trainer_json(folder_ / "resumed")["step"];
  EXPECT_GE(step, 7);  // that of 14 was waited for nowhere, and may not have been written yet
  EXPECT_LT(step, 50);
  run_training(options("resumed"));
  run_training(options("straight"));
  expect_equal_checkpoints("step-000050");
  const auto straight = read_metrics(folder_ / "straight", "loss");
  const auto resumed = read_metrics(folder_ / "resumed", "loss");
  ASSERT_EQ(straight.size(), 50u);
  ASSERT_EQ(resumed.size(), 50u);
  for (size_t i = 0; i < straight.size(); ++i) EXPECT_EQ(straight[i]["loss"], resumed[i]["loss"]);
}

// Everything that may change from step to step, stopped in the middle of each change.
TEST_F(TrainingRun, GrowingBatchesAndSequencesResumeToTheSameBits) {
  start_anew();
  json_["training"].update({{"steps", 12},
                            {"micro_batch_rows", 2},
                            {"first_batch_rows", 4},
                            {"batch_growth_steps", 6},
                            {"first_sequence_length", 8},
                            {"length_growth_steps", 8},
                            {"balance", "sequence"},
                            {"late_mtp_weight", 0.1},
                            {"late_mtp_fraction", 0.4},
                            {"fixed_bias_fraction", 0.2}});
  for (const int64_t stop : {2, 5, 9}) {
    TrainingRunOptions part = options("resumed");
    part.stop_after_step = stop;
    run_training(part);
  }
  run_training(options("resumed"));
  run_training(options("straight"));
  expect_equal_checkpoints("step-000012");
  const auto lines = read_metrics(folder_ / "straight", "loss");
  EXPECT_EQ(lines[0]["tokens"], 4 * 32);
  EXPECT_EQ(lines[5]["tokens"], (3 * 4 + 3 * 6) * 32);
  EXPECT_EQ(lines[11]["tokens"], (3 * 4 + 3 * 6 + 6 * 8) * 32);
}

TEST_F(TrainingRun, FillInTheMiddleChangesTheBatchesAndResumesToTheSameBits) {
  start_anew();
  base::write_file_atomically(folder_ / "text", "some text of some words, and some more text\n");
  text::train_tokenizer(
      {.inputs = {folder_ / "text"}, .output = folder_ / "tokenizer", .bpe = {.vocab_size = 270}});
  json_["tokenizer"]["vocab_size"] = json_["model"]["vocab_size"] = 270;
  run_training(options("plain"));
  json_["training"]["fim_rate"] = 0.5;
  TrainingRunOptions part = options("resumed");
  part.stop_after_step = 3;
  run_training(part);
  run_training(options("resumed"));
  run_training(options("straight"));
  expect_equal_checkpoints("step-000010");
  const auto with = read_metrics(folder_ / "straight", "loss");
  EXPECT_NE(with[0]["loss"], read_metrics(folder_ / "plain", "loss")[0]["loss"]);
}

TEST_F(TrainingRun, KeepsTheNewestCheckpointsAndNothingElse) {
  start_anew();
  fs::create_directories(folder_ / "run/step-000099.tmp");
  base::write_file_atomically(folder_ / "run/latest.tmp.1", "step-0000");
  run_training(options("run"));
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_ / "run"))
    names.insert(entry.path().filename());
  EXPECT_EQ(names, (std::set<std::string>{"events", "latest", "lock", "metrics.jsonl",
                                          "step-000008", "step-000010"}));
}

TEST_F(TrainingRun, AFolderInWhichAnotherProcessTrainsIsRefused) {
  start_anew();
  fs::create_directories(folder_ / "run");
  auto other = base::FileLock::try_lock(folder_ / "run/lock");
  try {
    run_training(options("run"));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), (folder_ / "run").string() +
                                ": another process trains in this folder; wait for its end, or "
                                "give --run another folder");
  }
  EXPECT_FALSE(fs::exists(folder_ / "run/metrics.jsonl"));
  other.reset();
  run_training(options("run"));
}

TEST_F(TrainingRun, ACheckpointThatCannotBeWrittenEndsTheRun) {
  start_anew();
  fs::create_directories(folder_ / "run");
  const auto full = folder_ / "run" / ("latest.tmp." + std::to_string(::getpid()));
  fs::create_symlink("/dev/full", full);
  try {
    run_training(options("run"));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("the checkpoint of step 2 could not be "))
        << error.what();
  }
  EXPECT_FALSE(fs::exists(folder_ / "run/latest"));
  EXPECT_FALSE(fs::exists(folder_ / "run/step-000006"));
}

// A run that was killed before its first checkpoint leaves metrics, which the next does not repeat.
TEST_F(TrainingRun, MetricsHoldEveryStepOnceForBothReaders) {
  start_anew();
  fs::create_directories(folder_ / "run");
  base::write_file_atomically(folder_ / "run/metrics.jsonl", "{\"step\":1,\"loss\":9}\n{\"st");
  TrainingRunOptions early = options("run");
  early.stop_after_step = 4;
  run_training(early);
  run_training(options("run"));
  const auto lines = read_metrics(folder_ / "run", "loss");
  ASSERT_EQ(lines.size(), 10u);
  for (size_t i = 0; i < lines.size(); ++i) EXPECT_EQ(lines[i]["step"], i + 1);
  int num_files = 0;
  for (const auto& entry : fs::directory_iterator(folder_ / "run/events")) {
    const std::string events = base::read_file(entry.path());
    int num_losses = 0;  // the tag's field: number 1, four bytes
    for (size_t at = 0; (at = events.find("\x0a\x04loss", at)) != std::string::npos; ++at)
      ++num_losses;
    EXPECT_EQ(num_losses, 10);
    ++num_files;
  }
  EXPECT_EQ(num_files, 1);
}

TEST_F(TrainingRun, GoesOnWithMoreStepsButNotWithAnotherRecipe) {
  start_anew();
  TrainingRunOptions early = options("resumed");
  early.stop_after_step = 3;
  run_training(early);
  EXPECT_EQ(trainer_json(folder_ / "resumed")["step"], 3);
  json_["training"]["sequence_length"] = 16;
  EXPECT_THROW(run_training(options("resumed")), Error);
  json_["training"]["sequence_length"] = 32;
  json_["training"]["validate_every"] = 1000;
  json_["training"]["steps"] = 14;
  const Json in_order = json_["training"];  // the order of keys is no other recipe
  json_["training"] = Json::object();
  for (auto entry = in_order.rbegin(); entry != in_order.rend(); ++entry)
    json_["training"][entry.key()] = entry.value();
  run_training(options("resumed"));
  EXPECT_EQ(trainer_json(folder_ / "resumed")["total_steps"], 14);
  // Of ten steps the rate would have fallen after seven, of 14 after ten.
  run_training(options("straight"));
  expect_equal_checkpoints("step-000014");
}

TEST_F(TrainingRun, ARunThatHasEndedGoesOnWithMoreStepsAndRefusesFewer) {
  start_anew();
  run_training(options("run"));
  json_["training"]["steps"] = 8;
  try {
    run_training(options("run"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), (folder_ / "run").string() +
                                ": \"training.steps\" is 8; expected at least the 10 steps that "
                                "are done");
  }
  json_["training"]["steps"] = 12;
  const TrainingRunOptions more = options("run");
  run_training(more);
  const auto lines = read_metrics(folder_ / "run", "loss");
  ASSERT_EQ(lines.size(), 12u);
  for (const int64_t step : {9, 10, 11})  // the end of the first decay, and the new one
    EXPECT_DOUBLE_EQ(lines[step]["learning_rate"].get<double>(),
                     more.recipe.optimizer.learning_rate *
                         learning_rate_factor(more.recipe.training, step, step < 10 ? 10 : 12));
}

TEST_F(TrainingRun, StepsLeftOutCountNoTokensAndAreStillToCome) {
  start_anew();
  json_["training"]["steps"] = 6;
  json_["training"]["skip_steps"] = {2, 5};
  TrainingRunOptions early = options("run");
  early.stop_after_step = 3;
  run_training(early);
  run_training(options("run"));
  const auto lines = read_metrics(folder_ / "run", "tokens");
  ASSERT_EQ(lines.size(), 4u);
  for (size_t i = 0; i < lines.size(); ++i) EXPECT_EQ(lines[i]["tokens"], (i + 1) * 8 * 32);
  for (const Json& others : {Json::array({2, 4, 5}), Json::array({5})}) {
    json_["training"]["skip_steps"] = others;
    try {
      run_training(options("run"));
      FAIL() << others;
    } catch (const Error& error) {
      const std::string what = error.what();
      EXPECT_NE(what.find("but the batches of [2, 5] were left out"), std::string::npos) << what;
    }
  }
}

TEST_F(TrainingRun, ATimeBudgetEndsTheRunWithItsDecay) {
  start_anew();
  json_["training"]["steps"] = 1000000;
  json_["training"]["checkpoint_every"] = 1000000;
  json_["training"]["validate_every"] = 1000000;
  TrainingRunOptions timed = options("run");
  timed.minutes = 0.03;
  run_training(timed);
  const Json state = trainer_json(folder_ / "run");
  const int64_t steps = state["total_steps"];
  EXPECT_EQ(state["step"], steps);
  EXPECT_LT(steps, 1000000);
  const auto lines = read_metrics(folder_ / "run", "loss");
  ASSERT_EQ(lines.size(), static_cast<size_t>(steps));
  const auto& training = timed.recipe.training;
  for (int64_t step : {steps / 2, steps - 2, steps - 1})
    EXPECT_DOUBLE_EQ(
        lines[step]["learning_rate"].get<double>(),
        timed.recipe.optimizer.learning_rate * learning_rate_factor(training, step, steps));
  // Most of the budget was spent at the peak, and the decay ended the run.
  const auto decaying = std::find_if(lines.begin() + 2, lines.end(), [&](const Json& line) {
    return line["learning_rate"] < timed.recipe.optimizer.learning_rate;
  });
  ASSERT_NE(decaying, lines.end());
  EXPECT_GE(decaying->at("seconds"), (1 - training.decay_fraction) * 60 * *timed.minutes);
  timed.recipe.training.schedule = "cosine";
  EXPECT_THROW(run_training(timed), Error);
}

TEST_F(TrainingRun, ALossThatIsNotFiniteEndsTheRun) {
  start_anew();
  json_["optimizer"]["learning_rate"] = 1e30;
  json_["training"]["warmup_steps"] = 0;
  json_["training"]["checkpoint_every"] = 1;
  try {
    run_training(options("run"));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("not finite at step"), std::string::npos)
        << error.what();
    EXPECT_NE(std::string(error.what()).find("last good checkpoint"), std::string::npos);
  }
}

// The loss of a step is that of the weights before its update.
TEST_F(TrainingRun, WeightsThatAreNotFiniteAreNotSaved) {
  start_anew();
  json_["training"]["checkpoint_every"] = 1;
  TrainingRunOptions good = options("run");
  good.stop_after_step = 2;
  run_training(good);
  TrainingRunOptions ruined = options("run");
  ruined.recipe.optimizer.learning_rate = 1e39;
  try {
    run_training(ruined);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.what(),
              "dense stage: model.embed_tokens.weight is not finite at step 3; the last good "
              "checkpoint is " +
                  (folder_ / "run/step-000002").string());
  }
  const auto weights = model::Safetensors::open(folder_ / "run/step-000002/model.safetensors");
  for (const auto& [name, view] : weights.tensors()) {
    const auto* values = reinterpret_cast<const float*>(view.data);
    EXPECT_TRUE(std::all_of(values, values + view.num_bytes() / sizeof(float), [](float value) {
      return std::isfinite(value);
    })) << name;
  }
}

TEST_F(TrainingRun, ExportsAModelThatOtherProgramsRead) {
  start_anew();
  fs::create_directories(folder_ / "tokenizer");
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
    base::write_file_atomically(folder_ / "tokenizer" / name, "{}");
  TrainingRunOptions exporting = options("run");
  exporting.export_folder = folder_ / "model";
  run_training(exporting);
  const Json config = base::read_json_file(folder_ / "model/config.json");
  EXPECT_EQ(config["model_type"], "deepseek_v32");
  EXPECT_EQ(base::read_json_file(folder_ / "model/generation_config.json")["eos_token_id"], 1);
  EXPECT_EQ(base::read_file(folder_ / "model/tokenizer.json"), "{}");
  // All that a server reads is in the list.
  model::verify_checkpoint(folder_ / "model");
  for (const auto& entry : fs::directory_iterator(folder_ / "model")) {
    const std::string name = entry.path().filename();
    if (name == model::kChecksumFile) continue;
    EXPECT_NE(base::read_file(folder_ / "model" / model::kChecksumFile).find("  " + name + "\n"),
              std::string::npos)
        << name;
  }
  const auto weights = model::Safetensors::open(folder_ / "model/model.safetensors");
  EXPECT_EQ(weights.at("model.embed_tokens.weight").dtype, model::DType::kBF16);
}

TEST_F(TrainingRun, AnExportThatCannotBeWrittenIsRefusedBeforeTheTraining) {
  start_anew();
  base::write_file_atomically(folder_ / "file", "");
  for (const char* place : {"file", "file/model"}) {
    TrainingRunOptions exporting = options("run");
    exporting.export_folder = folder_ / place;
    try {
      run_training(exporting);
      FAIL() << "no error";
    } catch (const Error& error) {
      const std::string what = error.what();
      EXPECT_TRUE(what.starts_with("--export " + (folder_ / place).string() +
                                   ": the model could not be written there: "))
          << what;
    }
    EXPECT_FALSE(fs::exists(folder_ / "run/metrics.jsonl"));
  }
  // An earlier model there stays as it is until the new one is finished.
  fs::create_directories(folder_ / "model");
  base::write_file_atomically(folder_ / "model/config.json", "old");
  TrainingRunOptions stopped = options("run");
  stopped.export_folder = folder_ / "model";
  stopped.stop_after_step = 1;
  run_training(stopped);
  EXPECT_EQ(base::read_file(folder_ / "model/config.json"), "old");
}

std::string error_of(const TrainingRunOptions& options) {
  try {
    run_training(options);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST_F(TrainingRun, AnExportIntoARunIsRefused) {
  start_anew();
  TrainingRunOptions first = options("run");
  first.stop_after_step = 2;
  run_training(first);
  fs::copy(folder_ / "run/step-000002", folder_ / "copy");
  fs::copy(folder_ / "run", folder_ / "other", fs::copy_options::recursive);
  for (const char* place : {"run", "run/step-000002", "run/step-000002/model", "copy", "other",
                            "other/step-000002/model", "other/model"}) {
    TrainingRunOptions exporting = options("run");
    exporting.export_folder = folder_ / place;
    EXPECT_EQ(error_of(exporting),
              "--export " + (folder_ / place).string() +
                  ": holds a run's checkpoints, whose f32 weights it would replace; name another "
                  "folder");
  }
  EXPECT_FALSE(fs::exists(folder_ / "run/config.json"));
  EXPECT_FALSE(fs::exists(folder_ / "other/model"));
}

TEST_F(TrainingRun, DamagedCheckpointsAreRefused) {
  start_anew();
  TrainingRunOptions half = options("run");
  half.stop_after_step = 4;
  run_training(half);
  for (const char* name : {"model.safetensors", "optimizer.safetensors"}) {
    const fs::path file = folder_ / "run/step-000004" / name;
    const std::string good = base::read_file(file);
    std::string bad = good;
    bad[bad.size() - 4] ^= 1;
    base::write_file_atomically(file, bad);
    EXPECT_NE(error_of(options("run")).find(file.string() + ": its SHA-256 is "),
              std::string::npos);
    base::write_file_atomically(file, good);
  }
  // A model without a list of sums, as others publish them.
  fs::create_directories(folder_ / "model");
  for (const char* name : {"config.json", "model.safetensors"})
    fs::copy(folder_ / "run/step-000004" / name, folder_ / "model" / name);
  TrainingRunOptions beginning = options("second");
  beginning.init = folder_ / "model";
  beginning.stop_after_step = 1;
  EXPECT_EQ(error_of(beginning), "");
  std::string weights = base::read_file(folder_ / "model/model.safetensors");
  const float nan = std::nanf("");
  std::memcpy(weights.data() + weights.size() - sizeof nan, &nan, sizeof nan);
  base::write_file_atomically(folder_ / "model/model.safetensors", weights);
  beginning.run = folder_ / "third";
  EXPECT_NE(error_of(beginning).find("holds values that are not finite"), std::string::npos);
}

TEST_F(TrainingRun, AnotherTextOrTokenizerIsRefused) {
  start_anew();
  const fs::path summary = folder_ / "tokens/tokens.json";
  const auto set_origin = [&](const char* corpus, const std::string& tokenizer) {
    Json json = base::read_json_file(summary);
    json["origin"] = {{"corpus", corpus}, {"tokenizer", tokenizer}};
    base::write_file_atomically(summary, json.dump());
  };
  fs::create_directories(folder_ / "tokenizer");
  const fs::path tokenizer = folder_ / "tokenizer/tokenizer.json";
  base::write_file_atomically(tokenizer, "{}");
  const std::string hash = hash_of_file(tokenizer);
  set_origin("a", hash);
  TrainingRunOptions half = options("run");
  half.stop_after_step = 2;
  run_training(half);
  const std::string run = (folder_ / "run").string();
  set_origin("b", hash);
  EXPECT_EQ(error_of(half), run +
                                ": trained on another text than is there now; bring it back, or "
                                "give --run another folder");
  set_origin("a", "other");
  EXPECT_EQ(error_of(half), run +
                                ": trained on another tokenizer's tokens than is there now; bring "
                                "it back, or give --run another folder");
  set_origin("a", hash);
  EXPECT_EQ(error_of(half), "");

  TrainingRunOptions next = options("next");
  next.init = folder_ / "run/step-000002";
  next.stop_after_step = 1;
  base::write_file_atomically(tokenizer, "{ }");
  const std::string message =
      "--init " + next.init->string() + ": its model knows another tokenizer";
  EXPECT_EQ(error_of(next).rfind(message, 0), 0u) << error_of(next);
  base::write_file_atomically(*next.init / "tokenizer.json", "{ }");  // what it says itself counts
  EXPECT_EQ(error_of(next), "");
}

// The later stages, each from the checkpoint of the one before.
class Stages : public TrainingRun {
 protected:
  void SetUp() override {
    if (testing::internal::InDeathTestChild()) return;
    start_anew();
    json_["training"]["steps"] = 6;
    const Json steps = {{"steps", 6},      {"sequence_length", 64}, {"warmup_steps", 1},
                        {"batch_rows", 4}, {"micro_batch_rows", 2}, {"document_masking", false}};
    json_["stages"] = {{"extend",
                        {{"model",
                          {{"rope_scaling",
                            {{"type", "yarn"},
                             {"factor", 4},
                             {"original_max_position_embeddings", 32},
                             {"beta_fast", 32},
                             {"beta_slow", 1},
                             {"mscale", 1.0},
                             {"mscale_all_dim", 1.0}}}}},
                         {"training", steps}}},
                       {"warmup", {{"model", {{"index_topk", 16}}}, {"training", steps}}},
                       {"sparse", {{"training", steps}}},
                       {"mtp", {{"training", steps}}}};
    run_training(options("dense"));
  }
  fs::path latest(const std::string& run) const {
    std::string name = base::read_file(folder_ / run / "latest");
    name.pop_back();
    return folder_ / run / name;
  }
  TrainingRunOptions stage(Stage stage, const std::string& run, const std::string& init) const {
    TrainingRunOptions options;
    options.recipe = parse_recipe(json_, "test", stage);
    options.run = folder_ / run;
    options.init = latest(init);
    return options;
  }
  // Leaves "straight" and "resumed", the one stopped in the middle.
  void expect_resumed_as_straight(Stage which, const std::string& init) const {
    run_training(stage(which, "straight", init));
    TrainingRunOptions half = stage(which, "resumed", init);
    half.stop_after_step = 3;
    run_training(half);
    run_training(stage(which, "resumed", init));
    expect_equal_checkpoints("step-000006");
  }
};

// Bytes of every tensor of a checkpoint that changed between two of them.
std::set<std::string> changed_tensors(const fs::path& before, const fs::path& after) {
  const auto a = model::Safetensors::open(before / "model.safetensors");
  const auto b = model::Safetensors::open(after / "model.safetensors");
  std::set<std::string> changed;
  for (const auto& [name, view] : a.tensors()) {
    const auto& other = b.at(name);
    if (std::memcmp(view.data, other.data, static_cast<size_t>(view.num_bytes())) != 0)
      changed.insert(name);
  }
  return changed;
}

TEST_F(Stages, T9TheWarmUpTouchesNothingButTheIndexers) {
  run_training(stage(Stage::kExtend, "extend", "dense"));
  run_training(stage(Stage::kWarmup, "warmup", "extend"));
  int num_indexer = 0;
  for (const std::string& name : changed_tensors(latest("extend"), latest("warmup"))) {
    EXPECT_NE(name.find(".indexer."), std::string::npos) << name;
    ++num_indexer;
  }
  EXPECT_EQ(num_indexer, 3 * 5);  // three layers, every tensor of theirs
  const auto lines = read_metrics(folder_ / "warmup", "indexer_loss");
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_LT(lines.back()["indexer_loss"], lines.front()["indexer_loss"]);
  EXPECT_FALSE(lines.back().contains("loss"));
  json_["stages"]["warmup"]["training"]["mtp_weight"] = 0;
  run_training(stage(Stage::kWarmup, "without_mtp_loss", "extend"));
  EXPECT_TRUE(changed_tensors(latest("warmup"), latest("without_mtp_loss")).empty());
  const auto validations = read_metrics(folder_ / "warmup", "validation_indexer_recall");
  ASSERT_FALSE(validations.empty());
  EXPECT_EQ(validations.back()["validation_indexer_recall"].size(), 2u);
}

TEST_F(Stages, T14TheSparseStageTrainsEverythingAndResumesToTheSameBits) {
  run_training(stage(Stage::kWarmup, "warmup", "dense"));
  expect_resumed_as_straight(Stage::kSparse, "warmup");
  const auto changed = changed_tensors(latest("warmup"), latest("straight"));
  EXPECT_TRUE(changed.contains("model.layers.1.self_attn.indexer.wk.weight"));
  EXPECT_TRUE(changed.contains("model.layers.1.self_attn.q_b_proj.weight"));
  EXPECT_TRUE(changed.contains("model.embed_tokens.weight"));
}

TEST_F(Stages, TheMtpStageBringsTheMtpLayerNearerToAModelThatStaysAsItIs) {
  json_["stages"]["mtp"]["training"].update({{"steps", 60}, {"validate_every", 1}});
  run_training(stage(Stage::kMtp, "mtp", "dense"));
  const auto changed = changed_tensors(latest("dense"), latest("mtp"));
  for (const std::string& name : changed) EXPECT_TRUE(name.starts_with("model.layers.2.")) << name;
  for (const char* name : {"eh_proj.weight", "self_attn.indexer.wk.weight",
                           "mlp.gate.e_score_correction_bias", "shared_head.norm.weight"})
    EXPECT_TRUE(changed.contains(std::string("model.layers.2.") + name)) << name;
  const auto lines = read_metrics(folder_ / "mtp", "validation_mtp_divergence");
  ASSERT_EQ(lines.size(), 60u);
  const Json &first = lines.front(), &last = lines.back();
  EXPECT_LT(last["validation_mtp_divergence"],
            0.7 * first["validation_mtp_divergence"].get<double>());
  EXPECT_GT(last["validation_mtp_overlap"], first["validation_mtp_overlap"].get<double>() + 0.02);
  EXPECT_EQ(last["validation_loss"], first["validation_loss"]);
  EXPECT_FALSE(read_metrics(folder_ / "mtp", "mtp_divergence").front().contains("loss"));
}

TEST_F(Stages, TheMtpStageResumesToTheSameBits) {
  expect_resumed_as_straight(Stage::kMtp, "dense");
}

TEST_F(Stages, MtpIsJudgedByTheSameMeansHoweverRowsAreBatched) {
  json_["stages"]["mtp"]["training"]["document_masking"] = true;
  const TokenRows rows(folder_ / "tokens", "validation", 64);
  std::vector<Validation> found;
  for (const int64_t micro_batch_rows : {1, 4}) {
    json_["stages"]["mtp"]["training"]["micro_batch_rows"] = micro_batch_rows;
    const Recipe recipe = parse_recipe(json_, "test", Stage::kMtp);
    found.push_back(Trainer::begin_with(recipe, latest("dense")).validate(rows));
  }
  EXPECT_NEAR(found[0].mtp_divergence, found[1].mtp_divergence, 1e-6);
  EXPECT_NEAR(found[0].mtp_overlap, found[1].mtp_overlap, 1e-6);
}

// What the main model's loss cannot show: it stays as it is.
TEST_F(Stages, AnMtpLayerThatIsRuinedIsNotSaved) {
  json_["stages"]["mtp"]["optimizer"] = {{"learning_rate", 1e19}};
  json_["stages"]["mtp"]["training"].update({{"validate_every", 1}, {"checkpoint_every", 1}});
  try {
    run_training(stage(Stage::kMtp, "mtp", "dense"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "mtp stage: validation loss is not finite at step 1; the last good checkpoint is "
                 "none (none was written yet)");
  }
}

TEST_F(Stages, ARunThatGoesOnKnowsWhatItBeganWith) {
  TrainingRunOptions half = stage(Stage::kWarmup, "warmup", "dense");
  half.stop_after_step = 3;
  run_training(half);
  const std::string first = half.init->string();
  const std::string run = (folder_ / "warmup").string();
  half.init = folder_ / "other";
  EXPECT_EQ(error_of(half), run + ": began with " + first + ", not with --init " +
                                half.init->string() +
                                "; leave --init out to go on, or give --run another folder");
  TrainingRunOptions dense = options("dense");
  dense.init = first;
  EXPECT_EQ(error_of(dense), (folder_ / "dense").string() +
                                 ": began with the recipe's seed, not with --init " + first +
                                 "; leave --init out to go on, or give --run another folder");
  // A checkpoint of before that was kept.
  Json state = trainer_json(run);
  state.erase("init");
  base::write_file_atomically(latest("warmup") / "trainer.json", state.dump());
  testing::internal::CaptureStderr();
  EXPECT_EQ(error_of(half), "");
  const std::string messages = testing::internal::GetCapturedStderr();
  EXPECT_NE(messages.find("--init " + half.init->string() +
                          " is ignored: the run goes on from its checkpoint\n"),
            std::string::npos)
      << messages;
  half.init.reset();
  half.stop_after_step.reset();
  EXPECT_EQ(error_of(half), "");
  EXPECT_FALSE(trainer_json(run).contains("init"));
}

TEST_F(Stages, AStageBeginsWithAModelOfItsShape) {
  TrainingRunOptions without = stage(Stage::kSparse, "sparse", "dense");
  without.init.reset();
  try {
    run_training(without);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "the sparse stage begins with a trained model; name its folder with --init");
  }
  json_["model"]["qk_nope_head_dim"] = 16;
  try {
    run_training(stage(Stage::kSparse, "sparse", "dense"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("qk_nope_head_dim is 8; the recipe's model has 16"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace fathom::pretrain
