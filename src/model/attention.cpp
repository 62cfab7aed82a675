#include "model/attention.h"

#include <algorithm>

#include "base/parallel.h"
#include "kernels/fp8.h"
#include "model/indexer.h"
#include "model/ops.h"

namespace fathom::model {
namespace {

using torch::Tensor;

// Queries, latent KV and the shared rotary key of all tokens.
struct Projections {
  Tensor q_latent_NQ;
  Tensor q_NHD;  // per head [nope | rope], rotated
  Tensor latent_NC;
  Tensor k_rope_NR;  // rotated
};

Projections project(const AttentionInput& in, const Tensor& x_ND) {
  const Config& c = in.config;
  const bool is_deploy = in.options.mode == NumericMode::kDeploy;
  const ops::LinearOptions linear{in.options.bf16_matmuls, is_deploy};
  const int64_t rope_dim = c.qk_rope_head_dim;
  Projections out;
  out.q_latent_NQ = ops::rms_norm(ops::linear(x_ND, in.weights.q_a_proj, linear),
                                  in.weights.q_a_layernorm, c.rms_norm_eps);
  out.q_NHD = ops::rope(ops::linear(out.q_latent_NQ, in.weights.q_b_proj, linear), in.rope.cos_NR2,
                        in.rope.sin_NR2,
                        {c.num_attention_heads, c.qk_head_dim(), c.qk_nope_head_dim, rope_dim});
  const auto kv = ops::linear(x_ND, in.weights.kv_a_proj_with_mqa, linear)
                      .split_with_sizes({c.kv_lora_rank, rope_dim}, 1);
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

kernels::AttentionShape attention_shape(const Config& c) {
  return {c.num_attention_heads, c.qk_head_dim(), c.v_head_dim,
          static_cast<float>(c.softmax_scale())};
}

Tensor training_attention(const AttentionInput& in, const Projections& p) {
  std::vector<int64_t> lengths;
  for (const Segment& segment : in.segments) lengths.push_back(segment.num_tokens);
  const ExpandedKv kv = expand(in, p.latent_NC, p.k_rope_NR);
  return ops::causal_attention(p.q_NHD, kv.k_SHD, kv.v_SHV, attention_shape(in.config), lengths);
}

// One segment's new tokens against its cache.
struct SegmentWork {
  int64_t first = 0;  // its first token in the batch
  int64_t count = 0;
  const KvCache* cache = nullptr;
  const std::vector<std::vector<int32_t>>* keys_T = nullptr;  // null: dense
  int64_t num_keys() const { return cache->num_tokens() + count; }
};

void mha_segment(const AttentionInput& in, const SegmentWork& work, const Tensor& q_NHD,
                 Tensor& out_NHV) {
  const Config& c = in.config;
  const int64_t num_keys = work.num_keys();
  const auto rows = work.cache->latent(in.layer, num_keys);
  const Tensor cached = torch::from_blob(const_cast<float*>(rows.data), {num_keys, rows.cols});
  const auto parts = cached.split_with_sizes({c.kv_lora_rank, c.qk_rope_head_dim}, 1);
  const ExpandedKv kv = expand(in, parts[0], parts[1]);
  std::vector<uint8_t> allowed;
  kernels::AttentionMask mask;
  if (work.keys_T) {
    allowed.resize(work.count * num_keys);
    for (int64_t t = 0; t < work.count; ++t)
      for (int32_t key : (*work.keys_T)[t]) allowed[t * num_keys + key] = 1;
    mask = {allowed.data(), num_keys};
  }
  Tensor lse = torch::empty({c.num_attention_heads, work.count});
  const auto slice = [&](const Tensor& x) {
    return ops::view2(x).slice_rows(work.first, work.first + work.count);
  };
  const kernels::AttentionForward io{slice(q_NHD),   ops::view2(kv.k_SHD), ops::view2(kv.v_SHV),
                                     slice(out_NHV), ops::view2(lse),      mask};
  base::parallel_for(c.num_attention_heads, 1, [&](int64_t begin, int64_t end) {
    kernels::attention_forward(attention_shape(c), io, begin, end);
  });
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
  base::parallel_for(heads, 1, [&](int64_t begin, int64_t end) {
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
  for (int64_t h = 0; h < heads; ++h)
    kernels::linear(
        {mean_NHC.data_ptr<float>() + h * c.kv_lora_rank, tokens, c.kv_lora_rank,
         heads * c.kv_lora_rank},
        weight.slice_rows(h * head_rows + c.qk_nope_head_dim, (h + 1) * head_rows),
        {values.data_ptr<float>() + h * c.v_head_dim, tokens, c.v_head_dim, heads * c.v_head_dim});
  return values;
}

void mqa_segment(const AttentionInput& in, const SegmentWork& work, const Tensor& absorbed,
                 Tensor& mean_NHC) {
  const Config& c = in.config;
  const int64_t heads = c.num_attention_heads, width = c.kv_lora_rank + c.qk_rope_head_dim;
  const auto latent = work.cache->latent(in.layer, work.num_keys());
  base::parallel_for(work.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t n = work.first + t;
      const auto* keys = work.keys_T ? &(*work.keys_T)[t] : nullptr;
      kernels::mqa_attention(
          {View2<const float>(absorbed.data_ptr<float>() + n * heads * width, heads, width), latent,
           keys ? keys->data() : nullptr,
           keys ? static_cast<int64_t>(keys->size()) : work.cache->num_tokens() + t + 1,
           static_cast<float>(c.softmax_scale()),
           View2<float>(mean_NHC.data_ptr<float>() + n * heads * c.kv_lora_rank, heads,
                        c.kv_lora_rank)});
    }
  });
}

void keep_selection(const Selection& selection, int64_t first, LayerTrace& trace) {
  for (size_t t = 0; t < selection.keys_T.size(); ++t) {
    const auto& keys = selection.keys_T[t];
    int32_t* row = trace.topk_NK.data_ptr<int32_t>() +
                   (first + static_cast<int64_t>(t)) * trace.topk_NK.size(1);
    std::copy(keys.begin(), keys.end(), row);
  }
  trace.index_scores_NS = selection.index_scores_TS;
}

Tensor cached_attention(const AttentionInput& in, const Projections& p, const Tensor& x_ND) {
  const Config& c = in.config;
  const int64_t tokens = x_ND.size(0), heads = c.num_attention_heads;
  const Tensor latent_rows = torch::cat({p.latent_NC, p.k_rope_NR}, 1);
  IndexerProjections indexer;
  if (in.options.sparse)
    indexer = project_indexer(in.weights.indexer, c, x_ND, p.q_latent_NQ, in.rope, in.options);
  const bool is_mqa = in.options.form == AttentionForm::kMqa;
  Tensor absorbed, mean, out;
  if (is_mqa) {
    absorbed = absorb_queries(in, p.q_NHD);
    mean = torch::empty({tokens, heads * c.kv_lora_rank});
  } else {
    out = torch::empty({tokens, heads * c.v_head_dim});
  }
  int64_t first = 0;
  for (const Segment& segment : in.segments) {
    CHECK(segment.cache != nullptr, "inference needs a cache a segment");
    SegmentWork work{first, segment.num_tokens, segment.cache, nullptr};
    const auto slice = [&](const Tensor& x) {
      return x.defined() ? ops::view2(x).slice_rows(first, first + work.count) : View2<float>();
    };
    segment.cache->write(in.layer, slice(latent_rows), slice(indexer.k_NX),
                         in.options.sparse ? indexer.k_scale_N.data_ptr<float>() + first : nullptr);
    Selection selection;
    // Up to index_topk keys every key is selected: the dense loop gives the same bits.
    if (in.options.sparse && (in.trace || work.num_keys() > c.index_topk)) {
      selection = select_keys(indexer, first, work.count, *segment.cache, in.layer, c, in.trace);
      work.keys_T = &selection.keys_T;
      if (in.trace) keep_selection(selection, first, *in.trace);
    }
    if (is_mqa)
      mqa_segment(in, work, absorbed, mean);
    else
      mha_segment(in, work, p.q_NHD, out);
    first += work.count;
  }
  return is_mqa ? expand_values(in, mean) : out;
}

bool has_caches(std::span<const Segment> segments) {
  return !segments.empty() && segments.front().cache != nullptr;
}

}  // namespace

Tensor mla_attention(const AttentionInput& in, const Tensor& x_ND) {
  const Projections p = project(in, x_ND);
  Tensor out;
  if (has_caches(in.segments)) {
    const torch::NoGradGuard no_grad;
    out = cached_attention(in, p, x_ND);
  } else {
    CHECK(!in.options.sparse, "sparse attention without a cache");
    out = training_attention(in, p);
  }
  return ops::linear(out, in.weights.o_proj,
                     {in.options.bf16_matmuls, in.options.mode == NumericMode::kDeploy});
}

}  // namespace fathom::model
