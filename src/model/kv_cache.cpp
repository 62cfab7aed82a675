#include "model/kv_cache.h"

#include "base/parallel.h"

namespace fathom::model {

using kernels::kPageRows;

CacheLayout::CacheLayout(const Config& config, CacheFormat format)
    : latent_{format, config.kv_lora_rank, config.qk_rope_head_dim},
      index_key_{format, config.index_head_dim},
      num_layers_(config.num_hidden_layers + config.num_nextn_predict_layers) {}

int64_t CacheLayout::bytes_per_token() const {
  return num_layers_ * (latent_.num_bytes() + index_key_.num_bytes());
}

int64_t CacheLayout::latent_offset(int64_t layer) const {
  CHECK(0 <= layer && layer < num_layers_, "layer {} of {}", layer, num_layers_);
  return layer * kPageRows * latent_.num_bytes();
}

int64_t CacheLayout::index_key_offset(int64_t layer) const {
  CHECK(0 <= layer && layer < num_layers_, "layer {} of {}", layer, num_layers_);
  return kPageRows * num_layers_ * latent_.num_bytes() + layer * index_key_.page_bytes();
}

KvCache::KvCache(const Config& config, CacheFormat format)
    : layout_(config, format),
      latent_pages_(layout_.num_layers()),
      index_pages_(layout_.num_layers()) {}

void KvCache::set_page(int64_t index, std::shared_ptr<CachePage> page) {
  CHECK_EQ(page->size(), layout_.page_bytes());
  if (index == static_cast<int64_t>(pages_.size())) pages_.emplace_back();
  for (int64_t layer = 0; layer < layout_.num_layers(); ++layer) {
    latent_pages_[layer].resize(pages_.size());
    index_pages_[layer].resize(pages_.size());
    latent_pages_[layer][index] = page->data() + layout_.latent_offset(layer);
    index_pages_[layer][index] = page->data() + layout_.index_key_offset(layer);
  }
  pages_.at(index) = std::move(page);
}

void KvCache::share(std::span<const std::shared_ptr<CachePage>> pages) {
  CHECK(pages_.empty(), "{} pages", pages_.size());
  for (const auto& page : pages) set_page(static_cast<int64_t>(pages_.size()), page);
  num_tokens_ = static_cast<int64_t>(pages_.size()) * kPageRows;
}

void KvCache::make_writable(int64_t position, int64_t num_rows) {
  CHECK_LE(position, num_tokens_);
  for (int64_t page = position / kPageRows; page * kPageRows < position + num_rows; ++page) {
    if (page == static_cast<int64_t>(pages_.size()))
      set_page(page, std::make_shared<CachePage>(layout_.page_bytes()));
    else if (pages_.at(page).use_count() > 1)
      set_page(page, std::make_shared<CachePage>(*pages_[page]));
  }
}

void KvCache::write(int64_t layer, int64_t position, View2<const float> latent,
                    View2<const float> index_key) {
  CHECK_EQ(latent.cols, layout_.latent().dim());
  CHECK(index_key.rows == 0 || index_key.rows == latent.rows);
  if (index_key.rows > 0) CHECK_EQ(index_key.cols, layout_.index_key().dim);
  make_writable(position, latent.rows);
  base::parallel_for(latent.rows, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t slot = (position + i) % kPageRows;
      std::byte* const page = pages_[(position + i) / kPageRows]->data();
      kernels::store_row(layout_.latent(), latent[i],
                         page + layout_.latent_offset(layer) + slot * layout_.latent().num_bytes());
      if (index_key.rows > 0)
        kernels::store_index_key(layout_.index_key(), index_key[i], slot,
                                 page + layout_.index_key_offset(layer));
    }
  });
}

void KvCache::advance(int64_t num_tokens) { num_tokens_ += num_tokens; }

void KvCache::truncate(int64_t num_tokens) {
  CHECK(0 <= num_tokens && num_tokens <= num_tokens_, "{} of {}", num_tokens, num_tokens_);
  num_tokens_ = num_tokens;
}

kernels::PagedRows KvCache::latent(int64_t layer, int64_t num_rows) const {
  CHECK_LE(num_rows, static_cast<int64_t>(pages_.size()) * kPageRows);
  return {layout_.latent(), latent_pages_.at(layer).data(), num_rows};
}

kernels::IndexKeyPages KvCache::index_keys(int64_t layer, int64_t num_rows) const {
  CHECK_LE(num_rows, static_cast<int64_t>(pages_.size()) * kPageRows);
  return {layout_.index_key(), index_pages_.at(layer).data(), num_rows};
}

}  // namespace fathom::model
