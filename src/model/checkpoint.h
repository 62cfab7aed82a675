// Checkpoints in the Hugging Face layout: config.json, model.safetensors or shards with
// model.safetensors.index.json.
#pragma once

#include <filesystem>

#include "model/transformer.h"

namespace fathom::model {

// Weights keep the file's dtype and point into its map, which lives as long as they do.
Model load_checkpoint(const std::filesystem::path& folder);
// The same with every weight as an f32 copy that requires gradients: to go on training.
Model load_checkpoint_for_training(const std::filesystem::path& folder);

// Throws Error where `path`, which is to be written, is a file of the model: model*.safetensors, a
// JSON file or the list of sums.
void check_is_no_part_of(const std::filesystem::path& path, const std::filesystem::path& folder);

// Writes config.json and model.safetensors (shards of at most max_shard_bytes, with an index, where
// one file would be larger) into `folder`, each by rename, then SHA256SUMS of them. Matrices,
// embeddings and norms become `dtype` (kBF16 or kF32); the expert bias stays f32.
void save_checkpoint(const Model& model, const std::filesystem::path& folder, torch::Dtype dtype,
                     uint64_t max_shard_bytes = 4ULL << 30);

}  // namespace fathom::model
