// Training runs of the built program over several processes, on a tiny corpus of made-up words.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "base/random.h"

namespace fathom {

namespace fs = std::filesystem;

// A program under way; its standard output and error go to a file.
class Process {
 public:
  Process(std::vector<std::string> command, const std::map<std::string, std::string>& environment,
          fs::path output)
      : output_(std::move(output)) {
    std::vector<char*> argv;
    for (std::string& word : command) argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ != 0) return;
    for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
    const int file = open(output_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    dup2(file, 1);
    dup2(file, 2);
    execvp(argv[0], argv.data());
    _exit(127);
  }
  ~Process() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    wait(std::chrono::seconds(10));
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void send(int signal) const { kill(pid_, signal); }
  // The exit code, 128 + the signal that ended it, or -1 where it still runs after so long.
  int wait(std::chrono::milliseconds longest = std::chrono::seconds(120)) {
    const auto end = std::chrono::steady_clock::now() + longest;
    int status = 0;
    while (waitpid(pid_, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > end) return -1;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    pid_ = 0;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }
  std::string output() const { return fs::exists(output_) ? base::read_file(output_) : ""; }

 private:
  fs::path output_;
  pid_t pid_ = 0;
};

// Documents in which each word follows from the one before most of the time.
inline void write_corpus(const fs::path& folder) {
  fs::create_directories(folder);
  base::Random random(5);
  for (const auto& [split, num_documents] :
       {std::pair("train", 240), std::pair("validation", 12)}) {
    std::string lines;
    for (int document = 0; document < num_documents; ++document) {
      std::string text;
      uint64_t word = random.below(40);
      for (uint64_t i = 20 + random.below(60); i > 0; --i) {
        text += {static_cast<char>('a' + word % 8), static_cast<char>('k' + word / 8), ' '};
        word = random.uniform() < 0.85 ? (word * 7 + 3) % 40 : random.below(40);
      }
      lines +=
          Json({{"source", "words"}, {"path", std::to_string(document)}, {"text", text}}).dump();
      lines += "\n";
    }
    base::write_file_atomically(folder / (std::string(split) + "-00000.jsonl"), lines);
  }
  base::write_file_atomically(folder / "manifest.json", "{}");
}

// The seed is one at which no key lies so near the edge of a selection that sums in another order
// move it across (7 has such a key: two ranks' curve of the sparse stage is then off by 5e-5).
inline Json rank_recipe(const fs::path& data) {
  Json recipe = Json::parse(R"({
    "corpus": [],
    "tokenizer": {"vocab_size": 320},
    "model": {
      "model_type": "deepseek_v32", "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2,
      "num_nextn_predict_layers": 1, "intermediate_size": 64, "max_position_embeddings": 128,
      "num_attention_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
      "qk_rope_head_dim": 8, "v_head_dim": 8, "index_n_heads": 2, "index_head_dim": 16,
      "index_topk": 16, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_shared_experts": 1,
      "num_experts_per_tok": 2, "moe_intermediate_size": 16, "initializer_range": 0.05
    },
    "optimizer": {"matrices": "muon", "learning_rate": 0.01, "weight_decay": 0.05},
    "training": {
      "seed": 8, "steps": 12, "sequence_length": 64, "batch_rows": 4, "micro_batch_rows": 2,
      "warmup_steps": 2, "validate_every": 6, "checkpoint_every": 4, "document_masking": false,
      "bf16_matmuls": false, "balance_weight": 0.01
    },
    "stages": {"warmup": {"training": {}}, "sparse": {"training": {}}, "mtp": {"training": {}}}
  })");
  recipe["data"] = data.string();
  return recipe;
}

class RankRuns : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(testing::TempDir()) / (std::string("fathom_ranks_") + test->name());
    fs::remove_all(folder_);
    write_corpus(folder_ / "data/text");
    json_ = rank_recipe(folder_ / "data");
  }
  void TearDown() override {
    if (!HasFailure()) fs::remove_all(folder_);
  }

  std::vector<std::string> command(const std::string& run,
                                   const std::vector<std::string>& more = {}) {
    base::write_file_atomically(folder_ / "recipe.json", json_.dump());
    std::vector<std::string> words = {FATHOM_BINARY, "pretrain",
                                      "--recipe",    (folder_ / "recipe.json").string(),
                                      "--run",       (folder_ / run).string(),
                                      "--threads",   "1"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  // Runs to the end and expects success.
  void train(const std::string& run, const std::vector<std::string>& more = {}) {
    Process process(command(run, more), {}, folder_ / (run + ".log"));
    ASSERT_EQ(process.wait(), 0) << process.output();
  }
  std::string latest(const std::string& run) const {
    std::string name = base::read_file(folder_ / run / "latest");
    name.pop_back();
    return (folder_ / run / name).string();
  }
  std::vector<Json> metrics(const std::string& run, const std::string& key) const {
    std::vector<Json> lines;
    if (!fs::exists(folder_ / run / "metrics.jsonl")) return lines;
    std::istringstream text(base::read_file(folder_ / run / "metrics.jsonl"));
    for (std::string line; std::getline(text, line);) {
      const Json json = Json::parse(line, nullptr, false);
      if (json.is_object() && json.contains(key)) lines.push_back(json);
    }
    return lines;
  }
  // The curves of two runs, each of `num_steps` steps: the greatest difference, for the log.
  double expect_near_curves(const std::string& a, const std::string& b, int64_t num_steps,
                            double tolerance) const {
    double greatest = 0;
    for (const char* key : {"loss", "mtp_loss", "mtp_divergence", "mtp_overlap", "indexer_loss",
                            "indexer_recall", "max_violation", "validation_loss",
                            "validation_mtp_divergence", "validation_mtp_overlap"}) {
      const auto first = metrics(a, key), second = metrics(b, key);
      EXPECT_EQ(first.size(), second.size()) << key;
      for (size_t i = 0; i < std::min(first.size(), second.size()); ++i) {
        const double difference =
            std::abs(first[i][key].get<double>() - second[i][key].get<double>());
        EXPECT_LE(difference, tolerance) << key << " of line " << i << " of " << b;
        greatest = std::max(greatest, difference);
      }
    }
    EXPECT_EQ(metrics(a, "learning_rate").size(), static_cast<size_t>(num_steps));
    printf("%s against %s: greatest difference %.1e\n", b.c_str(), a.c_str(), greatest);
    return greatest;
  }

  fs::path folder_;
  Json json_;
};

}  // namespace fathom
