// A tiny recipe and synthetic tokens for the tests of this chapter.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/random.h"
#include "model/safetensors.h"
#include "pretrain/recipe.h"

namespace fathom::pretrain {

inline std::string this_test() {
  return testing::UnitTest::GetInstance()->current_test_info()->name();
}

// A folder of its own for each test, empty at first: ctest runs tests side by side.
inline std::filesystem::path empty_folder(const std::string& name) {
  const auto folder = std::filesystem::path(testing::TempDir()) / ("fathom_pretrain_" + name);
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

inline Json tiny_recipe(const std::filesystem::path& data) {
  Json recipe = Json::parse(R"({
    "tokenizer": {"vocab_size": 64},
    "model": {
      "model_type": "deepseek_v32", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
      "num_nextn_predict_layers": 1, "intermediate_size": 64, "max_position_embeddings": 128,
      "num_attention_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
      "qk_rope_head_dim": 8, "v_head_dim": 8, "index_n_heads": 2, "index_head_dim": 16,
      "index_topk": 32, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_shared_experts": 1,
      "num_experts_per_tok": 2, "moe_intermediate_size": 16, "initializer_range": 0.05
    },
    "optimizer": {"matrices": "muon", "learning_rate": 0.01, "weight_decay": 0.05},
    "training": {
      "seed": 7, "steps": 10, "sequence_length": 32, "batch_rows": 8, "micro_batch_rows": 4,
      "warmup_steps": 2, "validate_every": 5, "checkpoint_every": 2
    }
  })");
  recipe["data"] = data.string();
  return recipe;
}

inline void write_shard(const std::filesystem::path& path, const std::vector<uint16_t>& tokens) {
  const model::NamedTensor tensor{"tokens",
                                  {model::DType::kU16,
                                   {static_cast<int64_t>(tokens.size())},
                                   reinterpret_cast<const std::byte*>(tokens.data())}};
  model::write_safetensors(path, {&tensor, 1});
}

// Documents of BOS (0), 10 to 49 tokens in which each follows from the one before most of the time,
// EOS (1). A byte a token.
inline void write_synthetic_tokens(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  Json summary = {{"fingerprint", "synthetic"}, {"vocab_size", 64}, {"bos_token_id", 0}};
  base::Random random(3);
  for (const auto& [split, num_documents] :
       {std::pair("train", 200), std::pair("validation", 20)}) {
    std::vector<uint16_t> tokens;
    for (int document = 0; document < num_documents; ++document) {
      tokens.push_back(0);
      auto token = static_cast<uint16_t>(2 + random.below(62));
      for (uint64_t i = 10 + random.below(40); i > 0; --i) {
        tokens.push_back(token);
        token = static_cast<uint16_t>(
            2 + (random.uniform() < 0.9 ? (token * 5u + 1) % 62 : random.below(62)));
      }
      tokens.push_back(1);
    }
    const std::string file = std::string(split) + "-00000.safetensors";
    write_shard(folder / file, tokens);
    summary[split] = {{"files", {file}},
                      {"num_documents", num_documents},
                      {"num_tokens", tokens.size()},
                      {"num_bytes", tokens.size() - 2 * num_documents}};
  }
  base::write_file_atomically(folder / "tokens.json", summary.dump());
}

}  // namespace fathom::pretrain
