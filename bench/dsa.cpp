#include "bench/dsa.h"

#include <algorithm>
#include <functional>

#include "base/check.h"
#include "base/parallel.h"
#include "base/random.h"
#include "bench/machine.h"
#include "bench/timing.h"
#include "kernels/bf16_dot.h"
#include "kernels/fp8.h"
#include "kernels/lightning_indexer.h"
#include "kernels/sparse_mla.h"
#include "kernels/top_k.h"
#include "model/kv_cache.h"

namespace fathom::bench {
namespace {

using kernels::kPageRows;
using kernels::RowFormat;
using kernels::RowLayout;

double best_ms(const std::function<void()>& run) {
  const bool is_alone = base::num_threads() == 1;
  return 1e3 * best_seconds({3, 200, 0.4, is_alone}, [&](int) { run(); });
}

std::vector<float> random_values(int64_t count, uint64_t seed) {
  base::Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(random.normal());
  return values;
}

// Pages of `num_rows` rows, the first 64 pages repeated: what is measured does not look at them.
class Cache {
 public:
  // Writes a row's numbers as the page's row `slot`.
  using Store = std::function<void(const float* values, int64_t slot, std::byte* page)>;

  Cache(int64_t num_rows, int64_t dim, int64_t page_bytes, uint64_t seed, const Store& store)
      : pages_((num_rows + kPageRows - 1) / kPageRows) {
    constexpr int64_t kDifferent = 64;
    const auto values = random_values(kDifferent * kPageRows * dim, seed);
    for (int64_t p = 0; p < std::ssize(pages_); ++p) {
      pages_[p] = p < kDifferent ? model::CachePage(page_bytes) : pages_[p - kDifferent];
      for (int64_t slot = 0; p < kDifferent && slot < kPageRows; ++slot)
        store(values.data() + (p * kPageRows + slot) * dim, slot, pages_[p].data());
      begins_.push_back(pages_[p].data());
    }
  }

  const std::byte* const* pages() const { return begins_.data(); }

 private:
  std::vector<model::CachePage> pages_;
  std::vector<const std::byte*> begins_;
};

std::string name_of(RowFormat format) {
  for (const auto& [name, known] : kernels::kRowFormats)
    if (known == format) return std::string(name);
  fail("row format {} has no name", static_cast<int>(format));
}

struct Layer {
  const DsaOptions& options;
  kernels::IndexKeyPages index_keys;
  kernels::PagedRows latents;

  double attention_ms(const std::vector<std::vector<int32_t>>& keys_T, bool is_dense) const;
  // peak_gflop_per_s: of the instructions that the kernels use on this cache.
  Json measure(int64_t num_queries, double peak_gflop_per_s) const;
};

double Layer::attention_ms(const std::vector<std::vector<int32_t>>& keys_T, bool is_dense) const {
  const int64_t dim = options.latent_dim + options.rope_dim;
  // Dense cost a token does not depend on how many tokens there are.
  const int64_t count = is_dense ? 1 : std::ssize(keys_T);
  const auto q = random_values(count * options.heads * dim, 3);
  std::vector<float> out(count * options.heads * options.latent_dim);
  return best_ms([&] {
           base::parallel_for(count, 1, [&](int64_t begin, int64_t end) {
             for (int64_t t = begin; t < end; ++t)
               kernels::sparse_mla({{q.data() + t * options.heads * dim, options.heads, dim},
                                    latents,
                                    is_dense ? nullptr : keys_T[t].data(),
                                    is_dense ? latents.num_rows : std::ssize(keys_T[t]),
                                    0.04f,
                                    {out.data() + t * options.heads * options.latent_dim,
                                     options.heads, options.latent_dim}});
           });
         }) /
         static_cast<double>(count);
}

// Share of the last query's selection that scores summed in double select too.
double overlap_with_double(const kernels::IndexerInput& input, int64_t k,
                           const std::vector<int32_t>& selected) {
  const int64_t last = input.q_TJX.rows - 1;
  std::vector<float> scores(input.k_SX.num_keys);
  kernels::reference::index_scores(
      {input.q_TJX.slice_rows(last, last + 1), input.w_TJ.slice_rows(last, last + 1), input.k_SX},
      {scores.data(), 1, std::ssize(scores)});
  std::vector<int32_t> expected, common;
  kernels::top_k(scores, k, expected);
  std::set_intersection(expected.begin(), expected.end(), selected.begin(), selected.end(),
                        std::back_inserter(common));
  return static_cast<double>(common.size()) / static_cast<double>(expected.size());
}

// Heads and weights as deploy mode makes them: e4m3 values, their scales in the weights.
struct IndexQueries {
  std::vector<float> q, w;

  IndexQueries(int64_t count, const DsaOptions& options)
      : q(random_values(count * options.index_heads * options.index_dim, 1)),
        w(random_values(count * options.index_heads, 2)) {
    const View2<float> heads(q.data(), count * options.index_heads, options.index_dim);
    std::vector<float> scales(w.size());
    kernels::quantise_activations(heads, heads, {scales.data(), heads.rows, 1});
    for (size_t i = 0; i < w.size(); ++i) w[i] *= scales[i];
  }
};

Json Layer::measure(int64_t num_queries, double peak_gflop_per_s) const {
  const int64_t context = index_keys.num_keys;
  const IndexQueries queries(num_queries, options);
  const kernels::IndexerInput input{
      {queries.q.data(), num_queries, options.index_heads * options.index_dim},
      {queries.w.data(), num_queries, options.index_heads},
      index_keys};
  std::vector<float> scores(num_queries * context);
  std::vector<std::vector<int32_t>> keys_T(num_queries);
  const auto count = static_cast<double>(num_queries);
  const double indexer_ms = best_ms([&] {
                              kernels::index_scores(input, {scores.data(), num_queries, context});
                            }) /
                            count;
  const double select_ms =
      best_ms([&] { kernels::select_keys(input, options.top_k, keys_T); }) / count;
  const double sparse_ms = attention_ms(keys_T, false), dense_ms = attention_ms({}, true);
  const double index_flop = 2.0 * static_cast<double>(context * options.index_heads) *
                            static_cast<double>(options.index_dim);
  const double attention_flop = 2.0 * static_cast<double>(keys_T.back().size()) *
                                static_cast<double>(options.heads) *
                                static_cast<double>(2 * options.latent_dim + options.rope_dim);
  return {{"indexer_ms", indexer_ms},
          {"topk_ms", std::max(0.0, select_ms - indexer_ms)},
          {"select_ms", select_ms},
          {"attention_ms", sparse_ms},
          {"dense_attention_ms", dense_ms},
          {"indexer_share_of_peak", index_flop / select_ms * 1e-6 / peak_gflop_per_s},
          {"attention_share_of_peak", attention_flop / sparse_ms * 1e-6 / peak_gflop_per_s},
          {"topk_overlap", overlap_with_double(input, options.top_k, keys_T.back())}};
}

}  // namespace

Json measure_dsa(const DsaOptions& options) {
  base::set_num_threads(options.num_threads);
  const MachinePeaks peaks = measure_machine();
  const kernels::IndexKeyLayout index_layout{options.cache, options.index_dim};
  const RowLayout latent_layout{options.cache, options.latent_dim, options.rope_dim};
  const bool is_bf16 = kernels::has_bf16_dot() && options.cache != RowFormat::kF32;
  const double peak_gflop_per_s = is_bf16 ? peaks.bf16_gflop_per_s : peaks.f32_gflop_per_s;
  Json result = {{"threads", options.num_threads},
                 {"cache", name_of(options.cache)},
                 {"arithmetic", is_bf16 ? "bf16" : "f32"},
                 {"latent_bytes_per_token", latent_layout.num_bytes()},
                 {"index_key_bytes_per_token", index_layout.num_bytes()},
                 {"machine",
                  {{"f32_gflop_per_s", peaks.f32_gflop_per_s},
                   {"bf16_gflop_per_s", peaks.bf16_gflop_per_s},
                   {"int8_gop_per_s", peaks.int8_gop_per_s},
                   {"read_gbyte_per_s", peaks.read_gbyte_per_s}}},
                 {"contexts", Json::array()}};
  for (const int64_t context : options.contexts) {
    if (context < options.prefill_tokens)
      fail("--contexts: {} is less than the {} tokens of the prefill", context,
           options.prefill_tokens);
    const Cache index_keys(context, index_layout.dim, index_layout.page_bytes(), 4,
                           [&](const float* values, int64_t slot, std::byte* page) {
                             kernels::store_index_key(index_layout, values, slot, page);
                           });
    const int64_t latent_bytes = latent_layout.num_bytes();
    const Cache latents(context, latent_layout.dim(), kPageRows * latent_bytes, 5,
                        [&](const float* values, int64_t slot, std::byte* page) {
                          kernels::store_row(latent_layout, values, page + slot * latent_bytes);
                        });
    const Layer layer{options,
                      {index_layout, index_keys.pages(), context},
                      {latent_layout, latents.pages(), context}};
    result["contexts"].push_back(
        {{"context", context},
         {"decode", layer.measure(1, peak_gflop_per_s)},
         {"prefill", layer.measure(options.prefill_tokens, peak_gflop_per_s)}});
  }
  return result;
}

}  // namespace fathom::bench
