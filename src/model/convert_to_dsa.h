// A dense MLA checkpoint becomes one with lightning indexers: where the report's continued training
// begins (V3.2, section 2.1.1).
#pragma once

#include <cstdint>
#include <filesystem>

namespace fathom::model {

struct DsaConversion {
  std::filesystem::path source;  // Hugging Face folder: model_type deepseek_v2 or deepseek_v3
  std::filesystem::path target;  // must not exist
  int64_t index_n_heads = 64;
  int64_t index_head_dim = 128;
  int64_t index_topk = 2048;
  uint64_t seed = 1;
};

// Writes `target`: the source's files beside it as hard links (copies where the file system has
// none), one more shard with a fresh indexer a layer in BF16, and config.json with the indexer's
// shape. Gates stay the source's (V2: softmax scores, choice without a bias), and where it has no
// query latent (q_lora_rank null), the indexers' queries are projected from the layer's input,
// which is ours. The model computes what it did until top-k is less than the context. Nothing is
// left behind on failure. An Error names what the source is instead of a dense model of this
// family.
void convert_to_dsa(const DsaConversion& options);

}  // namespace fathom::model
