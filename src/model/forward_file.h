// A forward pass from file to file: what `fathom forward` does.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace fathom::model {

struct ForwardFileOptions {
  std::filesystem::path model;
  std::string tokens;          // FILE.safetensors[:KEY], [B, T] i32 or i64
  std::string mode = "plain";  // or "deploy"
  // mha or mqa for every pass. auto: what is cheaper at a token's position (kTypicalRates), which
  // is a function of the position and of whether the token is part of the prefill.
  std::string form = "auto";
  std::optional<int64_t> prefill;
  bool dump_layers = false;
  std::filesystem::path out;
};

// Writes `logits` [B, T, vocab] f32 and, with dump_layers, for each layer N `layerN.topk` [B, T, k]
// i32 (ascending, -1 where there are fewer keys) and `layerN.hidden` [B, T, hidden] f32.
void run_forward_file(const ForwardFileOptions& options);

}  // namespace fathom::model
