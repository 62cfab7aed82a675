// A loaded model, for chapters that only carry it around: no tensor types here, see weights.h and
// transformer.h for the inside.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "model/config.h"

namespace fathom::model {

struct Model;  // model/transformer.h

// Reads config.json and the safetensors of `folder`. Weights stay in the file's dtype and are
// mapped, not copied. Throws Error naming the file and tensor at fault.
std::shared_ptr<const Model> load_model(const std::filesystem::path& folder);
// The same weights, of whose embedding and head the first `num_tokens` rows are used: no other id
// is ever drawn. For vocabularies that are padded beyond the tokenizer's.
std::shared_ptr<const Model> with_vocabulary(const Model& model, int64_t num_tokens);
const Config& config_of(const Model& model);
uint64_t num_parameters(const Model& model);

}  // namespace fathom::model
