// What attention keeps of past tokens: for each layer the latent KV with its rotary key, and the
// indexer's key. One sequence a cache; its pages of 64 tokens may be shared with other sequences
// that begin with the same tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/array_view.h"
#include "kernels/index_key_pages.h"
#include "kernels/paged_rows.h"
#include "model/config.h"

namespace fathom::model {

// kF32 keeps what was computed, kBF16 rounds it, kFP8 takes 656 + 132 bytes a token and layer at
// V3.2's shape. What deploy mode quantised itself passes through kFP8 unchanged, but for the rotary
// key, which it stores in bf16.
using CacheFormat = kernels::RowFormat;

// Where the latents of a page lie, and where its index keys. MTP layers follow the main ones.
class CacheLayout {
 public:
  CacheLayout(const Config& config, CacheFormat format);

  const kernels::RowLayout& latent() const { return latent_; }
  const kernels::IndexKeyLayout& index_key() const { return index_key_; }
  int64_t num_layers() const { return num_layers_; }
  int64_t bytes_per_token() const;  // over all layers
  int64_t page_bytes() const { return bytes_per_token() * kernels::kPageRows; }
  int64_t latent_offset(int64_t layer) const;
  int64_t index_key_offset(int64_t layer) const;

 private:
  kernels::RowLayout latent_;
  kernels::IndexKeyLayout index_key_;
  int64_t num_layers_;
};

// Zero at first. Begins with a line of the processor's caches, as each layer's part of it does.
class CachePage {
 public:
  explicit CachePage(int64_t num_bytes = 0) : lines_((num_bytes + kLine - 1) / kLine) {}

  int64_t size() const { return std::ssize(lines_) * kLine; }
  std::byte* data() { return lines_.data()->bytes; }

 private:
  static constexpr int64_t kLine = 64;
  struct alignas(kLine) Line {
    std::byte bytes[kLine];
  };
  std::vector<Line> lines_;
};

class KvCache {
 public:
  static constexpr int64_t kGrainRows = 16;  // that are worth a thread

  explicit KvCache(const Config& config, CacheFormat format = CacheFormat::kF32);

  const CacheLayout& layout() const { return layout_; }
  int64_t num_tokens() const { return num_tokens_; }

  // Begins with another sequence's pages: full ones, for num_tokens() = 64 * pages.size(). Only
  // into an empty cache.
  void share(std::span<const std::shared_ptr<CachePage>> pages);
  // The pages so far; the last may be partly filled.
  std::span<const std::shared_ptr<CachePage>> pages() const { return pages_; }

  // Pages for rows [position, position + num_rows): new ones, and copies of those that are shared.
  void make_writable(int64_t position, int64_t num_rows);
  // Rows of one layer for the tokens from `position` on, at most num_tokens(); advance() makes them
  // count once all layers have written theirs. index_key_NX may be empty (dense passes). Parallel.
  // Makes the rows writable first; where they are already, caches that share pages may be written
  // at the same time.
  void write(int64_t layer, int64_t position, View2<const float> latent_NC1,
             View2<const float> index_key_NX);
  void advance(int64_t num_tokens);
  // Forgets the tokens from `num_tokens` on.
  void truncate(int64_t num_tokens);

  // The first num_rows rows, rows just written included. Valid until the next write.
  kernels::PagedRows latent(int64_t layer, int64_t num_rows) const;
  kernels::IndexKeyPages index_keys(int64_t layer, int64_t num_rows) const;

 private:
  void set_page(int64_t index, std::shared_ptr<CachePage> page);

  CacheLayout layout_;
  int64_t num_tokens_ = 0;
  std::vector<std::shared_ptr<CachePage>> pages_;
  // Where each layer's rows of each page begin.
  std::vector<std::vector<const std::byte*>> latent_pages_, index_pages_;
};

}  // namespace fathom::model
