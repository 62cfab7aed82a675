#include "model/kv_cache.h"

#include <algorithm>

namespace fathom::model {
namespace {

void write_rows(View2<const float> rows, int64_t at, std::vector<float>& storage) {
  const size_t needed = static_cast<size_t>((at + rows.rows) * rows.cols);
  if (storage.capacity() < needed) storage.reserve(std::max(needed, 2 * storage.capacity()));
  storage.resize(needed);
  for (int64_t i = 0; i < rows.rows; ++i)
    std::copy_n(rows[i], rows.cols, storage.data() + (at + i) * rows.cols);
}

}  // namespace

KvCache::KvCache(const Config& config)
    : latent_dim_(config.kv_lora_rank + config.qk_rope_head_dim),
      index_dim_(config.index_head_dim),
      layers_(config.num_hidden_layers + config.num_nextn_predict_layers) {}

int64_t KvCache::bytes_per_token() const {
  return static_cast<int64_t>(layers_.size() * sizeof(float)) * (latent_dim_ + index_dim_ + 1);
}

void KvCache::write(int64_t layer, View2<const float> latent, View2<const float> index_key,
                    const float* index_scale) {
  CHECK_EQ(latent.cols, latent_dim_);
  write_rows(latent, num_tokens_, layers_.at(layer).latent);
  if (index_key.rows == 0) return;
  CHECK_EQ(index_key.cols, index_dim_);
  CHECK_EQ(index_key.rows, latent.rows);
  write_rows(index_key, num_tokens_, layers_[layer].index_keys);
  write_rows(View2<const float>(index_scale, index_key.rows, 1), num_tokens_,
             layers_[layer].index_scales);
}

void KvCache::advance(int64_t num_tokens) { num_tokens_ += num_tokens; }

void KvCache::truncate(int64_t num_tokens) {
  CHECK(0 <= num_tokens && num_tokens <= num_tokens_, "{} of {}", num_tokens, num_tokens_);
  num_tokens_ = num_tokens;
}

View2<const float> KvCache::latent(int64_t layer, int64_t num_rows) const {
  const auto& storage = layers_.at(layer).latent;
  CHECK_LE(static_cast<size_t>(num_rows * latent_dim_), storage.size());
  return {storage.data(), num_rows, latent_dim_};
}

View2<const float> KvCache::index_keys(int64_t layer, int64_t num_rows) const {
  const auto& storage = layers_.at(layer).index_keys;
  CHECK_LE(static_cast<size_t>(num_rows * index_dim_), storage.size());
  return {storage.data(), num_rows, index_dim_};
}

const float* KvCache::index_scales(int64_t layer) const {
  return layers_.at(layer).index_scales.data();
}

}  // namespace fathom::model
