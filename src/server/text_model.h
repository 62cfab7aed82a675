// A model folder as generation needs it: the model, its tokenizer, and how it wants to be sampled.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "engine/sampler.h"
#include "model/model.h"
#include "text/tokenizer.h"

namespace fathom::server {

struct TextModel {
  std::shared_ptr<const model::Model> model;
  text::Tokenizer tokenizer;
  engine::SamplingOptions sampling;     // for whoever does not say otherwise
  std::vector<int32_t> stop_token_ids;  // that end an answer
};

// config.json, the weights, tokenizer.json and, where there is one, generation_config.json
// (do_sample, temperature, top_p, top_k, min_p, eos_token_id). Throws Error naming the file at
// fault, also where the tokenizer is not the model's: it has ids beyond vocab_size, or another BOS
// or EOS.
TextModel load_text_model(const std::filesystem::path& folder);

}  // namespace fathom::server
