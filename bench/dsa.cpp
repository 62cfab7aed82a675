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

namespace fathom::bench {
namespace {

using kernels::PagedRows;
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

// `num_rows` rows, the 4,096 different ones repeated: what is measured does not look at them.
struct Cache {
  std::vector<std::byte> storage;
  std::vector<const std::byte*> pages;
  PagedRows rows;

  Cache(const RowLayout& layout, int64_t num_rows, uint64_t seed) {
    constexpr int64_t kDifferent = 4096;
    const int64_t bytes = layout.num_bytes(), page_bytes = bytes * kernels::kPageRows;
    storage.resize((num_rows + kernels::kPageRows - 1) / kernels::kPageRows * page_bytes);
    for (size_t at = 0; at < storage.size(); at += page_bytes) pages.push_back(storage.data() + at);
    const int64_t different = std::min(kDifferent, num_rows);
    const auto values = random_values(different * layout.dim(), seed);
    for (int64_t s = 0; s < different; ++s)
      store_row(layout, values.data() + s * layout.dim(), storage.data() + s * bytes);
    for (int64_t s = different; s < num_rows; ++s)
      std::copy_n(storage.data() + s % different * bytes, bytes, storage.data() + s * bytes);
    rows = {layout, pages.data(), num_rows};
  }
};

std::string name_of(RowFormat format) {
  for (const auto& [name, known] : kernels::kRowFormats)
    if (known == format) return std::string(name);
  fail("row format {} has no name", static_cast<int>(format));
}

struct Layer {
  const DsaOptions& options;
  const Cache& index_keys;
  const Cache& latents;

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
                                    latents.rows,
                                    is_dense ? nullptr : keys_T[t].data(),
                                    is_dense ? latents.rows.num_rows : std::ssize(keys_T[t]),
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
  std::vector<float> scores(input.k_SX.num_rows);
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
  const int64_t context = index_keys.rows.num_rows;
  const IndexQueries queries(num_queries, options);
  const kernels::IndexerInput input{
      {queries.q.data(), num_queries, options.index_heads * options.index_dim},
      {queries.w.data(), num_queries, options.index_heads},
      index_keys.rows};
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
  const RowLayout index_layout{options.cache, options.index_dim, 0};
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
    const Cache index_keys(index_layout, context, 4), latents(latent_layout, context, 5);
    const Layer layer{options, index_keys, latents};
    result["contexts"].push_back(
        {{"context", context},
         {"decode", layer.measure(1, peak_gflop_per_s)},
         {"prefill", layer.measure(options.prefill_tokens, peak_gflop_per_s)}});
  }
  return result;
}

}  // namespace fathom::bench
