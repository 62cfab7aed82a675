#include "model/kv_cache.h"

#include <gtest/gtest.h>

#include "model/test_config.h"

namespace fathom::model {
namespace {

// Rows of 4 and 2 numbers.
Config small_config() {
  Config c = tiny_config();
  c.num_nextn_predict_layers = 0;
  c.kv_lora_rank = 3;
  c.qk_rope_head_dim = 1;
  c.index_head_dim = 2;
  return c;
}

// Rows of one value, in every layer, for tokens [position, position + count).
void write_all(KvCache& cache, int64_t position, int64_t count, float value) {
  const std::vector<float> latent(count * 4, value), keys(count * 2, value);
  for (int64_t layer = 0; layer < 2; ++layer)
    cache.write(layer, position, {latent.data(), count, 4}, {keys.data(), count, 2});
}

float stored(const KvCache& cache, int64_t layer, int64_t row) {
  const auto rows = cache.latent(layer, row + 1);
  float values[4];
  kernels::widen_row(rows.layout, rows[row], values);
  return values[0];
}

TEST(CacheLayout, BytesOfARealTokenAndLayer) {
  Config c = small_config();
  c.num_hidden_layers = 1;
  c.kv_lora_rank = 512;
  c.qk_rope_head_dim = 64;
  c.index_head_dim = 128;
  EXPECT_EQ(CacheLayout(c, CacheFormat::kFP8).bytes_per_token(), 656 + 132);
  EXPECT_EQ(CacheLayout(c, CacheFormat::kFP8).page_bytes(), 64 * (656 + 132));
}

TEST(KvCache, LayersAndPagesDoNotOverlap) {
  KvCache cache(small_config());
  for (int64_t at = 0; at < 130; ++at) {
    write_all(cache, at, 1, static_cast<float>(at));
    cache.advance(1);
  }
  EXPECT_EQ(cache.pages().size(), 3u);
  for (int64_t row = 0; row < 130; ++row)
    for (int64_t layer = 0; layer < 2; ++layer)
      ASSERT_EQ(stored(cache, layer, row), static_cast<float>(row));
}

// A sequence that goes back into a page that it shares must not change the other's.
TEST(KvCache, ASharedPageIsCopiedBeforeItIsWritten) {
  KvCache first(small_config()), second(small_config());
  write_all(first, 0, 128, 1);
  first.advance(128);
  second.share(first.pages());
  EXPECT_EQ(second.num_tokens(), 128);
  EXPECT_EQ(second.pages()[0], first.pages()[0]);
  second.truncate(100);
  write_all(second, 100, 1, 2);
  second.advance(1);
  for (int64_t layer = 0; layer < 2; ++layer) {
    EXPECT_EQ(stored(second, layer, 100), 2);
    EXPECT_EQ(stored(second, layer, 99), 1);
    EXPECT_EQ(stored(first, layer, 100), 1);
  }
  EXPECT_EQ(second.pages()[0], first.pages()[0]);
  EXPECT_NE(second.pages()[1], first.pages()[1]);
}

}  // namespace
}  // namespace fathom::model
