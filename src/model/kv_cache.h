// What attention keeps of past tokens: for each layer the latent KV with its rotary key, and the
// indexer's key. One sequence a cache.
#pragma once

#include <cstdint>
#include <vector>

#include "base/array_view.h"
#include "model/config.h"

namespace fathom::model {

class KvCache {
 public:
  // MTP layers follow the main ones.
  explicit KvCache(const Config& config);

  int64_t num_tokens() const { return num_tokens_; }
  // Bytes a token takes over all layers.
  int64_t bytes_per_token() const;

  // Rows of one forward pass, written at num_tokens(); advance() makes them count once all layers
  // have written theirs. latent_NC1: kv_lora_rank + qk_rope_head_dim columns; index_key_NX may be
  // empty (dense passes). Grows by doubling.
  void write(int64_t layer, View2<const float> latent_NC1, View2<const float> index_key_NX,
             const float* index_scale_N);
  void advance(int64_t num_tokens);
  // Forgets the tokens from `num_tokens` on.
  void truncate(int64_t num_tokens);

  // The first `num_rows` rows, rows just written included.
  View2<const float> latent(int64_t layer, int64_t num_rows) const;
  View2<const float> index_keys(int64_t layer, int64_t num_rows) const;
  const float* index_scales(int64_t layer) const;

 private:
  struct Layer {
    std::vector<float> latent, index_keys, index_scales;
  };
  int64_t latent_dim_;
  int64_t index_dim_;
  int64_t num_tokens_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace fathom::model
