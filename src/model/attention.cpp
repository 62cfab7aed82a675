#include "model/attention.h"

#include <algorithm>

#include "base/parallel.h"
#include "kernels/fp8.h"
#include "kernels/sparse_mla.h"
#include "model/attention_ops.h"
#include "model/attention_probabilities.h"
#include "model/distribution.h"
#include "model/indexer.h"
#include "model/key_rule.h"
#include "model/ops.h"
#include "model/rank_ops.h"
#include "model/teacher_gradient.h"

namespace fathom::model {
namespace {

using torch::Tensor;

// Queries, latent KV and the shared rotary key of all tokens.
struct Projections {
  Tensor q_latent_NQ;  // what the indexer's queries are made of; without a latent, the input
  Tensor q_NHD;        // per head [nope | rope], rotated
  Tensor latent_NC;
  Tensor k_rope_NR;   // rotated
  Tensor cached_NC1;  // with caches both, as rows of them, in the place of the two
};

bool has_caches(std::span<const Segment> segments) {
  return !segments.empty() && segments.front().cache != nullptr;
}

// The normed latent and the rotated key from kv_a's output, row by row.
Tensor rows_for_caches(const AttentionInput& in, const Tensor& kv_NC1) {
  const torch::NoGradGuard no_grad;
  const int64_t rank = in.config.kv_lora_rank, rope_dim = in.config.qk_rope_head_dim;
  Tensor rows = torch::empty(kv_NC1.sizes());
  const View2<float> from = ops::view2(kv_NC1), to = ops::view2(rows);
  const View2<float> latent(to.data, to.rows, rank, to.stride);
  kernels::rms_norm(View2<const float>(from.data, from.rows, rank, from.stride),
                    in.weights.kv_a_layernorm.data_ptr<float>(),
                    static_cast<float>(in.config.rms_norm_eps), latent, nullptr);
  if (in.options.mode == NumericMode::kDeploy) kernels::round_through_fp8(latent, latent);
  for (int64_t n = 0; n < to.rows; ++n) std::copy_n(from[n] + rank, rope_dim, to[n] + rank);
  return ops::rope(std::move(rows), in.rope.cos_NR2, in.rope.sin_NR2,
                   {1, rank + rope_dim, rank, rope_dim});
}

Projections project(const AttentionInput& in, const Tensor& x_ND) {
  const Config& c = in.config;
  const bool is_deploy = in.options.mode == NumericMode::kDeploy;
  const ops::LinearOptions linear{in.options.bf16_matmuls, is_deploy};
  const int64_t rope_dim = c.qk_rope_head_dim;
  Projections out;
  const bool has_latent = c.q_lora_rank > 0;
  const Linear& first = has_latent ? in.weights.q_a_proj : in.weights.q_proj;
  auto q_and_kv = ops::linear_group(x_ND, {&first, &in.weights.kv_a_proj_with_mqa}, linear);
  out.q_latent_NQ =
      has_latent ? ops::rms_norm(q_and_kv[0], in.weights.q_a_layernorm, c.rms_norm_eps) : x_ND;
  out.q_NHD = ops::rope(has_latent ? ops::linear(out.q_latent_NQ, in.weights.q_b_proj, linear)
                                   : std::move(q_and_kv[0]),
                        in.rope.cos_NR2, in.rope.sin_NR2,
                        {c.num_attention_heads, c.qk_head_dim(), c.qk_nope_head_dim, rope_dim});
  if (has_caches(in.segments)) {
    out.cached_NC1 = rows_for_caches(in, q_and_kv[1]);
    return out;
  }
  const auto kv = q_and_kv[1].split_with_sizes({c.kv_lora_rank, rope_dim}, 1);
  out.latent_NC = ops::rms_norm(kv[0], in.weights.kv_a_layernorm, c.rms_norm_eps);
  if (is_deploy) kernels::round_through_fp8(ops::view2(out.latent_NC), ops::view2(out.latent_NC));
  out.k_rope_NR =
      ops::rope(kv[1].contiguous(), in.rope.cos_NR2, in.rope.sin_NR2, {1, rope_dim, 0, rope_dim});
  return out;
}

// Keys and values of every head from latents: the MHA form's expansion.
struct ExpandedKv {
  Tensor k_SHD;  // [S, H * (nope + rope)]
  Tensor v_SHV;  // [S, H * v]
};

ExpandedKv expand(const AttentionInput& in, const Tensor& latent_SC, const Tensor& k_rope_SR) {
  const Config& c = in.config;
  const ops::LinearOptions linear{in.options.bf16_matmuls, in.options.mode == NumericMode::kDeploy};
  const int64_t rows = latent_SC.size(0), heads = c.num_attention_heads;
  const auto kv = ops::linear(latent_SC, in.weights.kv_b_proj, linear)
                      .view({rows, heads, c.qk_nope_head_dim + c.v_head_dim})
                      .split_with_sizes({c.qk_nope_head_dim, c.v_head_dim}, 2);
  const Tensor k_rope = k_rope_SR.unsqueeze(1).expand({rows, heads, c.qk_rope_head_dim});
  return {torch::cat({kv[0], k_rope}, 2).view({rows, heads * c.qk_head_dim()}),
          kv[1].reshape({rows, heads * c.v_head_dim})};
}

// The ranks that share the batch's tokens: this one alone, where none do.
RankGroup sequence_ranks(const AttentionInput& in) {
  return in.options.distribution ? in.options.distribution->sequence : RankGroup();
}

// Keys and values of every token that this rank's queries may see. Latents are what goes from rank
// to rank: they are a fraction of the keys and values that each rank makes of them.
ExpandedKv expand_for_queries(const AttentionInput& in, const Projections& p) {
  const RankGroup ranks = sequence_ranks(in);
  if (ranks.size() == 1) return expand(in, p.latent_NC, p.k_rope_NR);
  const auto rows = ops::gather_rows(torch::cat({p.latent_NC, p.k_rope_NR}, 1), ranks)
                        .split_with_sizes({in.config.kv_lora_rank, in.config.qk_rope_head_dim}, 1);
  return expand(in, rows[0].contiguous(), rows[1]);
}

kernels::AttentionShape attention_shape(const Config& c, const ForwardOptions& options) {
  return {c.num_attention_heads, c.qk_head_dim(), c.v_head_dim,
          static_cast<float>(c.softmax_scale()),
          options.bf16_matmuls ? kernels::Precision::kBF16 : kernels::Precision::kF32};
}

// The batch's segments, which begin at position 0, or those parts of them that are this rank's:
// keys are then those of all ranks, in the order of the tokens.
std::vector<ops::SegmentRows> segment_rows(const AttentionInput& in, int64_t num_tokens) {
  std::vector<ops::SegmentRows> rows;
  int64_t begin = 0;
  const int64_t first_key = num_tokens * sequence_ranks(in).rank();
  for (const Segment& segment : in.segments) {
    CHECK(segment.position == 0 || sequence_ranks(in).size() > 1);
    rows.push_back({begin, segment.num_tokens, first_key + begin - segment.position,
                    segment.position + segment.num_tokens});
    begin += segment.num_tokens;
  }
  return rows;
}

// What experiments put in the place of parts (other key rules, a teacher with gradient, the entropy
// of attention) works on whole sequences.
std::vector<int64_t> whole_lengths(const AttentionInput& in) {
  const ForwardOptions& options = in.options;
  const bool is_experiment =
      options.key_rule != KeyRule::kIndexer || !options.detach_teacher || options.attention_entropy;
  CHECK(!is_experiment || sequence_ranks(in).size() == 1, "experiments run without sequence ranks");
  std::vector<int64_t> lengths;
  for (const Segment& segment : in.segments) lengths.push_back(segment.num_tokens);
  return lengths;
}

Tensor training_attention(const AttentionInput& in, const Projections& p, const Tensor& x_ND) {
  const auto segments = segment_rows(in, x_ND.size(0));
  const auto shape = attention_shape(in.config, in.options);
  const ForwardOptions& options = in.options;
  const bool has_loss = options.indexer_loss && in.statistics;
  const bool selects = options.sparse && options.key_rule == KeyRule::kIndexer;
  const auto cut = [&](const Tensor& x) { return options.detach_indexer_input ? x.detach() : x; };
  IndexerProjections indexer;
  if (selects || has_loss)
    indexer = project_indexer(in.weights.indexer, in.config, cut(x_ND), cut(p.q_latent_NQ), in.rope,
                              options);
  if (indexer.k_NX.defined()) indexer.k_NX = ops::gather_rows(indexer.k_NX, sequence_ranks(in));
  const ExpandedKv kv = expand_for_queries(in, p);
  const auto lengths = whole_lengths(in);
  ops::KeySelection selection;
  if (selects)
    selection = select_in_segments(indexer, segments, in.config, options);
  else if (options.sparse)
    selection = select_by_rule({options.key_rule, in.config.index_topk, options.key_seed, in.layer,
                                p.q_NHD, kv.k_SHD, shape},
                               lengths);
  const ops::Attended attended =
      ops::attend(p.q_NHD, kv.k_SHD, kv.v_SHV, shape, segments, selection, has_loss);
  if (options.attention_entropy && in.statistics)
    in.statistics->attention_entropy.push_back(
        mean_entropy({p.q_NHD, kv.k_SHD, shape, lengths}, selection));
  if (has_loss) {
    const ops::IndexerLossStudent student{indexer.q_NJX, indexer.w_NJ, indexer.k_NX};
    const ops::IndexerLossTeacher teacher{p.q_NHD, kv.k_SHD, attended.lse_HN, shape,
                                          attended.probabilities};
    const auto loss =
        ops::indexer_loss(student, teacher, segments, selection, in.config.index_topk);
    in.statistics->indexer_loss.push_back(
        options.detach_teacher
            ? loss.loss
            : loss.loss + ops::teacher_gradient(student, teacher, lengths, selection));
    in.statistics->indexer_recall.push_back(loss.recall);
  }
  return attended.out_NHV;
}

// Queries of one segment that select together: they share the tiles of keys.
constexpr int64_t kTileQueries = 16;

using Selections = std::vector<std::vector<int32_t>>;  // of every token of the batch; may be empty

// One segment's new tokens; `first` is the first one's row in the batch.
void mha_segment(const AttentionInput& in, const Segment& segment, int64_t first,
                 const Selections& keys_N, const Tensor& q_NHD, Tensor& out_NHV) {
  const Config& c = in.config;
  const int64_t num_keys = segment.position + segment.num_tokens;
  const auto rows = segment.cache->latent(in.layer, num_keys);
  const Tensor cached = torch::empty({num_keys, rows.layout.dim()});
  base::parallel_for(num_keys, 64, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s)
      kernels::widen_row(rows.layout, rows[s], cached.data_ptr<float>() + s * rows.layout.dim());
  });
  const auto parts = cached.split_with_sizes({c.kv_lora_rank, c.qk_rope_head_dim}, 1);
  const ExpandedKv kv = expand(in, parts[0], parts[1]);
  std::vector<uint8_t> allowed;
  kernels::AttentionMask mask;
  if (!keys_N.empty()) {
    allowed.resize(segment.num_tokens * num_keys);
    for (int64_t t = 0; t < segment.num_tokens; ++t) {
      uint8_t* const row = allowed.data() + t * num_keys;
      if (keys_N[first + t].empty()) std::fill_n(row, num_keys, 1);  // sees all before it
      for (int32_t key : keys_N[first + t]) row[key] = 1;
    }
    mask = {allowed.data(), num_keys};
  }
  Tensor lse = torch::empty({c.num_attention_heads, segment.num_tokens});
  const auto slice = [&](const Tensor& x) {
    return ops::view2(x).slice_rows(first, first + segment.num_tokens);
  };
  const kernels::AttentionForward io{slice(q_NHD),   ops::view2(kv.k_SHD), ops::view2(kv.v_SHV),
                                     slice(out_NHV), ops::view2(lse),      mask};
  base::parallel_for(c.num_attention_heads, 1, [&](int64_t begin, int64_t end) {
    kernels::attention_forward(attention_shape(c, in.options), io, begin, end);
  });
}

// The absorbed products quantise nothing, in deploy mode neither.
kernels::Precision absorbed_precision(const AttentionInput& in) {
  return in.options.bf16_matmuls ? kernels::Precision::kBF16 : kernels::Precision::kF32;
}

// q_nope W_k: queries of all heads in the latent space, followed by their rotary part,
// [N, H * (C + R)].
Tensor absorb_queries(const AttentionInput& in, const Tensor& q_NHD) {
  const Config& c = in.config;
  const int64_t tokens = q_NHD.size(0), heads = c.num_attention_heads;
  const int64_t width = c.kv_lora_rank + c.qk_rope_head_dim,
                head_rows = c.qk_nope_head_dim + c.v_head_dim;
  Tensor absorbed = torch::empty({tokens, heads * width});
  const auto weight = ops::weight_view(in.weights.kv_b_proj);
  // A few tokens of a small model: waking another thread costs more than the product.
  const int64_t head_work = tokens * c.qk_nope_head_dim * c.kv_lora_rank;
  base::parallel_for(
      heads, std::max<int64_t>(1, (1 << 20) / head_work), [&](int64_t begin, int64_t end) {
        for (int64_t h = begin; h < end; ++h) {
          const float* q = q_NHD.data_ptr<float>() + h * c.qk_head_dim();
          float* out = absorbed.data_ptr<float>() + h * width;
          kernels::linear_transposed(
              {q, tokens, c.qk_nope_head_dim, heads * c.qk_head_dim()},
              weight.slice_rows(h * head_rows, h * head_rows + c.qk_nope_head_dim),
              {out, tokens, c.kv_lora_rank, heads * width});
          for (int64_t n = 0; n < tokens; ++n)
            std::copy_n(q + n * heads * c.qk_head_dim() + c.qk_nope_head_dim, c.qk_rope_head_dim,
                        out + n * heads * width + c.kv_lora_rank);
        }
      });
  return absorbed;
}

// Values of all heads from attention's mean latents, [N, H * v].
Tensor expand_values(const AttentionInput& in, const Tensor& mean_NHC) {
  const Config& c = in.config;
  const int64_t tokens = mean_NHC.size(0), heads = c.num_attention_heads;
  const int64_t head_rows = c.qk_nope_head_dim + c.v_head_dim;
  Tensor values = torch::empty({tokens, heads * c.v_head_dim});
  const auto weight = ops::weight_view(in.weights.kv_b_proj);
  const int64_t head_work = tokens * c.v_head_dim * c.kv_lora_rank;
  base::parallel_for(
      heads, std::max<int64_t>(1, (1 << 20) / head_work), [&](int64_t begin, int64_t end) {
        for (int64_t h = begin; h < end; ++h)
          kernels::linear(
              {mean_NHC.data_ptr<float>() + h * c.kv_lora_rank, tokens, c.kv_lora_rank,
               heads * c.kv_lora_rank},
              weight.slice_rows(h * head_rows + c.qk_nope_head_dim, (h + 1) * head_rows),
              {values.data_ptr<float>() + h * c.v_head_dim, tokens, c.v_head_dim,
               heads * c.v_head_dim},
              absorbed_precision(in));
      });
  return values;
}

// Mean latents of all tokens, [N, H * C].
Tensor mqa_means(const AttentionInput& in, const std::vector<QueryTile>& tiles,
                 const Selections& keys_N, const Tensor& absorbed) {
  const Config& c = in.config;
  const int64_t heads = c.num_attention_heads, width = c.kv_lora_rank + c.qk_rope_head_dim;
  Tensor mean_NHC = torch::empty({absorbed.size(0), heads * c.kv_lora_rank});
  const auto attend = [&](int64_t n, const QueryTile& tile) {
    const int64_t num_visible = tile.position + n - tile.first + 1;
    const auto* keys = keys_N.empty() || keys_N[n].empty() ? nullptr : &keys_N[n];
    kernels::sparse_mla(
        {View2<const float>(absorbed.data_ptr<float>() + n * heads * width, heads, width),
         tile.cache->latent(in.layer, num_visible), keys ? keys->data() : nullptr,
         keys ? std::ssize(*keys) : num_visible, static_cast<float>(c.softmax_scale()),
         View2<float>(mean_NHC.data_ptr<float>() + n * heads * c.kv_lora_rank, heads,
                      c.kv_lora_rank)});
  };
  // By queries, not tiles: a token and its draft are one tile. Fewer queries than threads have
  // their keys shared out instead.
  const int64_t num_queries = absorbed.size(0);
  const int64_t grain = num_queries < base::num_threads() ? num_queries : 1;
  base::parallel_for(num_queries, grain, [&](int64_t begin, int64_t end) {
    auto tile = std::find_if(tiles.begin(), tiles.end(),
                             [&](const QueryTile& of) { return begin < of.first + of.count; });
    for (int64_t n = begin; n < end; ++n) {
      if (n == tile->first + tile->count) ++tile;
      attend(n, *tile);
    }
  });
  return mean_NHC;
}

std::vector<QueryTile> query_tiles(std::span<const Segment> segments) {
  std::vector<QueryTile> tiles;
  int64_t first = 0;
  for (const Segment& segment : segments) {
    for (int64_t t = 0; t < segment.num_tokens; t += kTileQueries)
      tiles.push_back({first + t, std::min(kTileQueries, segment.num_tokens - t),
                       segment.position + t, segment.cache});
    first += segment.num_tokens;
  }
  return tiles;
}

// Up to index_topk keys a query sees all of them. (A trace shows its selection even so.)
bool selects(const AttentionInput& in, const QueryTile& tile) {
  return in.options.sparse && (in.trace || tile.position + tile.count > in.config.index_topk);
}

// Empty where every query sees every key: the dense loop gives the same bits.
Selections select_all(const AttentionInput& in, const std::vector<QueryTile>& tiles,
                      const IndexerProjections& indexer) {
  if (!indexer.q_NJX.defined()) return {};
  Selections keys_N(tiles.back().first + tiles.back().count);
  base::parallel_for(std::ssize(tiles), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto keys_T = std::span(keys_N).subspan(tiles[i].first, tiles[i].count);
      if (selects(in, tiles[i])) select_keys(indexer, tiles[i], in.layer, in.config, keys_T);
    }
  });
  return keys_N;
}

void keep_selections(const AttentionInput& in, const IndexerProjections& indexer,
                     const Selections& keys_N) {
  int32_t* row = in.trace->topk_NK.data_ptr<int32_t>();
  for (const auto& keys : keys_N) {
    std::copy(keys.begin(), keys.end(), row);
    row += in.trace->topk_NK.size(1);
  }
  if (in.segments.size() != 1) return;
  const Segment& segment = in.segments.front();
  in.trace->index_scores_NS =
      index_scores(indexer, {0, segment.num_tokens, segment.position, segment.cache}, in.layer);
}

// Long segments row by row, the others segment by segment. k_NX may be undefined.
void write_caches(const AttentionInput& in, const Tensor& latent_NC1, const Tensor& k_NX) {
  struct Rows {
    const Segment& segment;
    int64_t first;
  };
  std::vector<Rows> long_ones, short_ones;
  int64_t first = 0, num_short = 0;
  for (const Segment& segment : in.segments) {
    CHECK(segment.cache != nullptr, "inference needs a cache a segment");
    segment.cache->make_writable(segment.position, segment.num_tokens);
    const bool is_long = segment.num_tokens >= 2 * KvCache::kGrainRows;
    (is_long ? long_ones : short_ones).push_back({segment, first});
    if (!is_long) num_short += segment.num_tokens;
    first += segment.num_tokens;
  }
  const auto write = [&](const Rows& rows) {
    const auto slice = [&](const Tensor& x) {
      return x.defined()
                 ? ops::view2(x).slice_rows(rows.first, rows.first + rows.segment.num_tokens)
                 : View2<float>();
    };
    rows.segment.cache->write(in.layer, rows.segment.position, slice(latent_NC1), slice(k_NX));
  };
  for (const Rows& rows : long_ones) write(rows);
  const auto count = std::ssize(short_ones);
  const int64_t grain = KvCache::kGrainRows * count / std::max<int64_t>(num_short, 1);
  base::parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) write(short_ones[i]);
  });
}

Tensor cached_attention(const AttentionInput& in, const Projections& p, const Tensor& x_ND) {
  const auto tiles = query_tiles(in.segments);
  IndexerProjections indexer;
  if (in.options.sparse) {
    const bool any = std::any_of(tiles.begin(), tiles.end(),
                                 [&](const QueryTile& tile) { return selects(in, tile); });
    indexer = project_indexer(in.weights.indexer, in.config, x_ND, any ? p.q_latent_NQ : Tensor(),
                              in.rope, in.options);
  }
  write_caches(in, p.cached_NC1, indexer.k_NX);
  const Selections keys_N = select_all(in, tiles, indexer);
  if (in.trace && in.options.sparse) keep_selections(in, indexer, keys_N);
  if (in.options.form == AttentionForm::kMqa)
    return expand_values(in, mqa_means(in, tiles, keys_N, absorb_queries(in, p.q_NHD)));
  Tensor out = torch::empty({x_ND.size(0), in.config.num_attention_heads * in.config.v_head_dim});
  int64_t first = 0;
  for (const Segment& segment : in.segments) {
    const bool is_sparse = segment.position + segment.num_tokens > in.config.index_topk;
    mha_segment(in, segment, first, is_sparse || in.trace ? keys_N : Selections(), p.q_NHD, out);
    first += segment.num_tokens;
  }
  return out;
}

}  // namespace

Tensor mla_attention(const AttentionInput& in, const Tensor& x_ND) {
  const Projections p = project(in, x_ND);
  Tensor out;
  if (has_caches(in.segments)) {
    const torch::NoGradGuard no_grad;
    out = cached_attention(in, p, x_ND);
  } else {
    out = training_attention(in, p, x_ND);
  }
  return ops::linear(out, in.weights.o_proj,
                     {in.options.bf16_matmuls, in.options.mode == NumericMode::kDeploy});
}

}  // namespace fathom::model
