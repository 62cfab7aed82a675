// Every dense member of the family gets indexers and then computes what it did, held against its
// equations (reports of V2, section 2, and of V3, sections 2.1 and 4.3) in double precision.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <numbers>

#include "base/check.h"
#include "model/checkpoint.h"
#include "model/convert_to_dsa.h"
#include "model/test_dense_checkpoint.h"

namespace fathom::model {
namespace {

namespace fs = std::filesystem;
using torch::Tensor;

class DenseReference {
 public:
  explicit DenseReference(const DenseCheckpoint& checkpoint)
      : c_(checkpoint.config()), tensors_(checkpoint.tensors()) {}

  Tensor logits(const Tensor& tokens_T) const {
    Tensor x = weight("model.embed_tokens").index_select(0, tokens_T);
    for (int64_t layer = 0; layer < size("num_hidden_layers"); ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      x = x + attention(prefix + "self_attn.", norm(prefix + "input_layernorm", x));
      const Tensor normed = norm(prefix + "post_attention_layernorm", x);
      x = x + (layer < size("first_k_dense_replace") ? mlp(prefix + "mlp.", normed)
                                                     : moe(prefix + "mlp.", normed));
    }
    return linear("lm_head", norm("model.norm", x));
  }

 private:
  int64_t size(const char* key) const { return c_.at(key).get<int64_t>(); }
  Tensor weight(const std::string& name) const {
    return tensors_.at(name + ".weight").to(torch::kDouble);
  }
  Tensor linear(const std::string& name, const Tensor& x) const {
    return x.matmul(weight(name).t());
  }
  Tensor norm(const std::string& name, const Tensor& x) const {
    const double eps = c_.at("rms_norm_eps").get<double>();
    return x * (x.square().mean(-1, true) + eps).rsqrt() * weight(name);
  }
  Tensor mlp(const std::string& prefix, const Tensor& x) const {
    const Tensor gate = linear(prefix + "gate_proj", x);
    return linear(prefix + "down_proj", gate * gate.sigmoid() * linear(prefix + "up_proj", x));
  }

  // The i-th pair's angle a token; YaRN divides the slow ones by its factor.
  double frequency(int64_t i) const {
    const double dim = static_cast<double>(size("qk_rope_head_dim")), theta = c_.at("rope_theta");
    const double fast = std::pow(theta, -2.0 * static_cast<double>(i) / dim);
    if (!c_.contains("rope_scaling")) return fast;
    const Json& yarn = c_["rope_scaling"];
    const auto index = [&](const char* beta) {
      const double turns = yarn[beta].get<double>() * 2 * std::numbers::pi;
      return dim * std::log(yarn["original_max_position_embeddings"].get<double>() / turns) /
             (2 * std::log(theta));
    };
    const double low = std::max(std::floor(index("beta_fast")), 0.0);
    const double high = std::min(std::ceil(index("beta_slow")), dim - 1);
    const double slow = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    return fast * (1 - slow) + fast / yarn["factor"].get<double>() * slow;
  }

  // x: [T, heads, rope], neighbours are the two parts of a complex number.
  Tensor turned(const Tensor& x) const {
    Tensor out = x.clone();
    for (int64_t t = 0; t < x.size(0); ++t)
      for (int64_t i = 0; i < x.size(2) / 2; ++i) {
        const double angle = static_cast<double>(t) * frequency(i);
        const Tensor a = x.select(0, t).select(1, 2 * i), b = x.select(0, t).select(1, 2 * i + 1);
        out.select(0, t).select(1, 2 * i).copy_(a * std::cos(angle) - b * std::sin(angle));
        out.select(0, t).select(1, 2 * i + 1).copy_(a * std::sin(angle) + b * std::cos(angle));
      }
    return out;
  }

  double softmax_scale() const {
    const double scale =
        1 / std::sqrt(static_cast<double>(size("qk_nope_head_dim") + size("qk_rope_head_dim")));
    if (!c_.contains("rope_scaling")) return scale;
    const double m = 0.1 * c_["rope_scaling"]["mscale_all_dim"].get<double>() *
                         std::log(c_["rope_scaling"]["factor"].get<double>()) +
                     1;
    return scale * m * m;
  }

  Tensor attention(const std::string& prefix, const Tensor& x) const {
    const int64_t tokens = x.size(0), heads = size("num_attention_heads");
    const int64_t nope = size("qk_nope_head_dim"), rope = size("qk_rope_head_dim");
    const Tensor q = (c_["q_lora_rank"].is_null()
                          ? linear(prefix + "q_proj", x)
                          : linear(prefix + "q_b_proj",
                                   norm(prefix + "q_a_layernorm", linear(prefix + "q_a_proj", x))))
                         .view({tokens, heads, nope + rope});
    const Tensor kv_a = linear(prefix + "kv_a_proj_with_mqa", x);
    const int64_t rank = size("kv_lora_rank");
    const Tensor kv =
        linear(prefix + "kv_b_proj", norm(prefix + "kv_a_layernorm", kv_a.narrow(1, 0, rank)))
            .view({tokens, heads, nope + size("v_head_dim")});
    const Tensor k_rope = turned(kv_a.narrow(1, rank, rope).unsqueeze(1));
    const Tensor scores =
        (torch::einsum("thd,shd->hts", {q.narrow(2, 0, nope), kv.narrow(2, 0, nope)}) +
         torch::einsum("thd,sd->hts", {turned(q.narrow(2, nope, rope)), k_rope.squeeze(1)})) *
        softmax_scale();
    const Tensor later = torch::ones({tokens, tokens}, torch::kBool).triu(1);
    const Tensor p = scores.masked_fill(later, -INFINITY).softmax(-1);
    const Tensor v = kv.narrow(2, nope, size("v_head_dim"));
    return linear(prefix + "o_proj", torch::einsum("hts,shd->thd", {p, v}).reshape({tokens, -1}));
  }

  // The chosen experts' part of each token's output, [T, E].
  Tensor expert_weights(const std::string& prefix, const Tensor& x) const {
    const int64_t experts = size("n_routed_experts"), groups = size("n_group");
    const Tensor logits = linear(prefix + "gate", x);
    const bool is_v3 = c_["topk_method"] == "noaux_tc";
    const Tensor scores = is_v3 ? logits.sigmoid() : logits.softmax(1);
    Tensor ranked = scores;
    if (is_v3) ranked = scores + tensors_.at(prefix + "gate.e_score_correction_bias");
    if (c_["topk_method"] == "group_limited_greedy") {
      const Tensor best = std::get<0>(scores.view({-1, groups, experts / groups}).max(2));
      const Tensor kept = std::get<1>(best.topk(size("topk_group"), 1));
      const Tensor allowed = torch::zeros_like(best).scatter(1, kept, 1);
      ranked = scores * allowed.repeat_interleave(experts / groups, 1);
    }
    const Tensor chosen = std::get<1>(ranked.topk(size("num_experts_per_tok"), 1));
    Tensor weights = scores.gather(1, chosen);
    if (c_["norm_topk_prob"]) weights = weights / weights.sum(1, true);
    weights = weights * c_["routed_scaling_factor"].get<double>();
    return torch::zeros_like(scores).scatter(1, chosen, weights);
  }

  Tensor moe(const std::string& prefix, const Tensor& x) const {
    const Tensor weights_TE = expert_weights(prefix, x);
    Tensor out = mlp(prefix + "shared_experts.", x);
    for (int64_t e = 0; e < weights_TE.size(1); ++e)
      out =
          out + weights_TE.narrow(1, e, 1) * mlp(prefix + "experts." + std::to_string(e) + ".", x);
    return out;
  }

  Json c_;
  std::map<std::string, Tensor> tensors_;
};

class DenseFamily : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    fs::remove_all(folder_);
    dense_.write(folder_ / "dense");
    convert_to_dsa({folder_ / "dense", folder_ / "sparse", 3, 16, 128, 1});
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path folder_ =
      fs::path(testing::TempDir()) / ("fathom_dense_family_" + std::to_string(::getpid()));
  DenseCheckpoint dense_{dense_config(GetParam())};
};

TEST_P(DenseFamily, KeepsEveryTensorAndGetsIndexersOfItsQueries) {
  const Model model = load_checkpoint(folder_ / "sparse");
  Weights weights = model.weights;
  size_t num_kept = 0;
  for (const TensorSlot& slot : tensor_slots(weights, model.config)) {
    if (is_indexer(slot)) continue;
    ++num_kept;
    EXPECT_TRUE(slot.tensor->equal(dense_.tensors().at(slot.name).to(slot.tensor->scalar_type())))
        << slot.name;
  }
  EXPECT_EQ(num_kept, dense_.tensors().size());
  const bool has_latent = !dense_.config()["q_lora_rank"].is_null();
  EXPECT_EQ(model.weights.layers[0].self_attn.indexer.wq_b.weight.size(1), has_latent ? 16 : 32);
  const Json written = to_json(model.config);
  for (const char* key : {"scoring_func", "topk_method", "norm_topk_prob", "q_lora_rank"})
    EXPECT_EQ(written[key], dense_.config()[key]) << key;
}

TEST_P(DenseFamily, ComputesWhatItsEquationsSay) {
  const torch::NoGradGuard no_grad;
  const Model model = load_checkpoint(folder_ / "sparse");
  torch::manual_seed(6);
  const Tensor tokens = torch::randint(64, {50}, torch::kLong);
  const Tensor expected = DenseReference(dense_).logits(tokens).to(torch::kFloat32);
  EXPECT_GT(expected.std().item<double>(), 0.1);
  KvCache cache(model.config);
  const Segment cached{50, 0, &cache}, alone{50, 0, nullptr};
  for (const Segment& segment : {cached, alone}) {
    const Tensor got = logits(model, forward(model, tokens, {&segment, 1}, {}), {});
    EXPECT_LT((got - expected).abs().max().item<double>(),
              2e-4 * expected.abs().max().item<double>());
  }
}

INSTANTIATE_TEST_SUITE_P(, DenseFamily, dense_kinds(), [](const auto& info) { return info.param; });

// Files of V2 may leave out what its own code has as defaults, which are not V3's.
TEST(DenseFamilyDefaults, AreThoseOfTheSourcesOwnCode) {
  const fs::path folder =
      fs::path(testing::TempDir()) / ("fathom_dense_defaults_" + std::to_string(::getpid()));
  fs::remove_all(folder);
  DenseCheckpoint(dense_v2_lite_config()).write(folder / "dense");
  Json config = dense_v2_lite_config();
  for (const char* key : {"scoring_func", "topk_method", "norm_topk_prob"}) config.erase(key);
  config["n_group"] = config["topk_group"] = config["pad_token_id"] = nullptr;
  base::write_file_atomically(folder / "dense/config.json", config.dump());
  convert_to_dsa({folder / "dense", folder / "sparse", 2, 16, 8, 1});
  const Config converted = read_config(folder / "sparse/config.json");
  EXPECT_EQ(converted.scoring_func, ScoringFunc::kSoftmax);
  EXPECT_EQ(converted.topk_method, TopkMethod::kGreedy);
  EXPECT_FALSE(converted.norm_topk_prob);

  const auto error_with = [&](const char* key, const Json& value) -> std::string {
    Json changed = dense_v2_config();
    changed[Json::json_pointer(key)] = value;
    base::write_file_atomically(folder / "dense/config.json", changed.dump());
    try {
      convert_to_dsa({folder / "dense", folder / "refused", 2, 16, 8, 1});
    } catch (const Error& error) {
      return std::string(error.what()).substr((folder / "dense/config.json").string().size());
    }
    return "converted";
  };
  EXPECT_EQ(error_with("/topk_method", "gready"),
            ": field \"topk_method\" is \"gready\"; expected \"noaux_tc\" or "
            "\"group_limited_greedy\" or \"greedy\"");
  EXPECT_EQ(error_with("/mlp_bias", true), ": field \"mlp_bias\" is true; only false is supported");
  EXPECT_EQ(error_with("/moe_layer_freq", 2),
            ": field \"moe_layer_freq\" is 2; only 1 is supported");
  EXPECT_EQ(error_with("/rope_scaling/mscale_all_dim", nullptr),
            ": field \"rope_scaling.mscale_all_dim\" is missing; expected what mscale is");
  EXPECT_EQ(error_with("/max_position_embeddings", 32),
            ": max_position_embeddings is 32 and rope_scaling.original_max_position_embeddings is "
            "32; expected more, since the scaling would do nothing");
  EXPECT_EQ(error_with("/rope_parameters", {{"rope_type", "yarn"}, {"mscale", 1}}),
            ": field \"rope_parameters.mscale_all_dim\" is missing; expected what mscale is");
  fs::remove_all(folder);
}

}  // namespace
}  // namespace fathom::model
