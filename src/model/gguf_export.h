// A model folder as one GGUF file of llama.cpp's architecture "deepseek32", so that a second
// implementation can be held against this one.
#pragma once

#include <filesystem>
#include <string>

namespace fathom::model {

struct GgufExportOptions {
  std::filesystem::path model;
  std::filesystem::path out;
  std::string type = "bf16";  // of matrices: "f32", "f16" or "bf16"; vectors and routers stay f32
};

// Config, tokenizer and every tensor, MTP's included. FP8 weights are widened (exactly, in bf16);
// the experts of a layer become one tensor, kv_b_proj is cut into its key half (transposed) and its
// value half. Needs the memory of one matrix in f32. Throws Error where the file cannot say what
// the model is: interleaved indexer RoPE, gates or queries that are not V3.2's, a pre-tokenizer
// that is not DeepSeek-V3's.
void export_gguf(const GgufExportOptions& options);

}  // namespace fathom::model
