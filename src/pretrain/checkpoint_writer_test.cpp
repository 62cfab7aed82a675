#include "pretrain/checkpoint_writer.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <thread>

#include "base/check.h"
#include "base/free_port.h"
#include "pretrain/test_data.h"

namespace fathom::pretrain {
namespace {

namespace fs = std::filesystem;

model::Config config_of(int64_t vocab_size) {
  Json json = tiny_recipe("data")["model"];
  json["vocab_size"] = vocab_size;
  return model::parse_config(json, "test");
}

// A model with an optimizer that has moments.
struct Training {
  model::Model model;
  Optimizer optimizer;

  explicit Training(int64_t vocab_size = 64)
      : model(model::initialise(config_of(vocab_size), 1)),
        optimizer(model::tensor_slots(model.weights, model.config), OptimizerRecipe{}) {
    update(1);
  }
  void update(int64_t step) {
    model.weights.embed_tokens.mutable_grad() = torch::ones_like(model.weights.embed_tokens);
    optimizer.step(0.1, step);
  }
};

torch::Tensor saved_embedding(const fs::path& checkpoint) {
  const auto file = model::Safetensors::open(checkpoint / "model.safetensors");
  const auto& view = file.at("model.embed_tokens.weight");
  return torch::from_blob(const_cast<std::byte*>(view.data), view.shape).clone();
}

// The file holds what was there at start(), whatever training does meanwhile. The model is large
// enough for that to happen while it is being written.
TEST(CheckpointWriter, TrainingGoesOnWithoutChangingWhatIsWritten) {
  Training training(100'000);
  const RunFolder folder(empty_folder("snapshot"));
  const torch::Tensor before = training.model.weights.embed_tokens.detach().clone();
  const auto moments = training.optimizer.state();
  const torch::Tensor moment = moments.front().tensor.clone();
  CheckpointWriter writer;
  writer.start(folder, {1, 10, 0.5, {}}, training.model, training.optimizer, 2);
  training.update(2);
  EXPECT_FALSE(training.model.weights.embed_tokens.equal(before));
  writer.wait();
  const auto checkpoint = folder.latest();
  ASSERT_TRUE(checkpoint.has_value());
  EXPECT_TRUE(saved_embedding(*checkpoint).equal(before));
  EXPECT_TRUE(RunFolder::load_optimizer(*checkpoint).front().tensor.equal(moment));
  EXPECT_EQ(RunFolder::load_state(*checkpoint).step, 1);
}

TEST(CheckpointWriter, KeepsTheLastOnes) {
  Training training;
  const fs::path path = empty_folder("keep");
  const RunFolder folder(path);
  CheckpointWriter writer;
  for (int64_t step = 1; step <= 5; ++step)
    writer.start(folder, {step, 10, 0, {}}, training.model, training.optimizer, 2);
  writer.wait();
  EXPECT_EQ(folder.latest()->filename(), "step-000005");
  EXPECT_TRUE(fs::exists(path / "step-000004"));
  EXPECT_FALSE(fs::exists(path / "step-000003"));
}

// Rank 1 is late with its files. Training's own messages do not wait for them.
TEST(CheckpointWriter, RanksWriteTheirFilesBesideTheTraining) {
  const fs::path path = empty_folder("ranks");
  const uint16_t port = base::free_port();
  const auto run = [&](int rank) {
    const auto ranks =
        model::RankGroup::join({rank, 2, "127.0.0.1", port, std::chrono::seconds(20)});
    Training training;
    const RunFolder folder(path);
    CheckpointWriter writer(ranks);
    if (rank == 0) {
      writer.start(folder, {1, 10, 0, {}}, training.model, training.optimizer, 2);
      // Its thread waits for rank 1 by then: in training's group that would be its next message.
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
    }
    torch::Tensor sum = torch::ones({3});
    ranks.all_reduce(sum);
    EXPECT_EQ(sum[0].item<float>(), 2);
    EXPECT_FALSE(fs::exists(path / "latest"));
    ranks.barrier();
    if (rank == 1) writer.start(folder, {1, 10, 0, {}}, training.model, training.optimizer, 2);
    writer.wait();
    ranks.barrier();
    EXPECT_EQ(folder.latest()->filename(), "step-000001");
    EXPECT_TRUE(fs::exists(*folder.latest() / "optimizer-00001-of-00002.safetensors"));
    EXPECT_TRUE(fs::exists(*folder.latest() / "optimizer-00002-of-00002.safetensors"));
  };
  std::thread other([&] { run(1); });
  run(0);
  other.join();
}

// The error comes with the next call, and again nowhere: the run ends of it.
TEST(CheckpointWriter, AnErrorNamesStepAndReasonAndLeavesThePreviousOne) {
  Training training;
  const fs::path path = empty_folder("no_room");
  const RunFolder folder(path);
  CheckpointWriter writer;
  writer.start(folder, {1, 10, 0, {}}, training.model, training.optimizer, 2);
  writer.wait();
  // A full disk: `latest` cannot be replaced.
  const auto full = path / ("latest.tmp." + std::to_string(::getpid()));
  fs::create_symlink("/dev/full", full);
  writer.start(folder, {2, 10, 0, {}}, training.model, training.optimizer, 2);
  try {
    writer.wait();
    FAIL();
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_TRUE(what.starts_with("the checkpoint of step 2 could not be written: ")) << what;
    EXPECT_NE(what.find("No space left on device"), std::string::npos) << what;
  }
  EXPECT_EQ(folder.latest()->filename(), "step-000001");
  EXPECT_EQ(RunFolder::load_state(*folder.latest()).step, 1);
  EXPECT_NO_THROW(writer.check());
}

// Ends this process as soon as files of the second checkpoint are there, not yet under their name.
[[noreturn]] void write_until_killed(const fs::path& path) {
  Training training(200'000);
  const RunFolder folder(path);
  CheckpointWriter writer;
  writer.start(folder, {1, 10, 0, {}}, training.model, training.optimizer, 2);
  writer.wait();
  writer.start(folder, {2, 10, 0, {}}, training.model, training.optimizer, 2);
  while (!fs::exists(path / "step-000002.tmp")) std::this_thread::yield();
  raise(SIGKILL);
  abort();
}

TEST(CheckpointWriter, AKillInTheMiddleLeavesThePreviousOne) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const fs::path path = fs::path(testing::TempDir()) / "fathom_pretrain_killed_writer";
  if (!testing::internal::InDeathTestChild()) empty_folder("killed_writer");
  EXPECT_EXIT(write_until_killed(path), testing::KilledBySignal(SIGKILL), "");
  EXPECT_TRUE(fs::exists(path / "step-000002.tmp"));
  const RunFolder folder(path);
  ASSERT_TRUE(folder.latest().has_value());
  EXPECT_EQ(folder.latest()->filename(), "step-000001");
  EXPECT_EQ(RunFolder::load_state(*folder.latest()).step, 1);
  EXPECT_EQ(saved_embedding(*folder.latest()).size(0), 200'000);
}

}  // namespace
}  // namespace fathom::pretrain
