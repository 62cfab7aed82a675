// The published reference's own numbers, tests/data/tiny-{bf16,fp8}: prefill and decode, MHA and
// MQA, plain and deploy. Tolerances are those of the cases' description (docs/NUMBERS.md has what
// was reached).
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cmath>
#include <set>

#include "model/checkpoint.h"
#include "model/ops.h"
#include "model/safetensors.h"

namespace fathom::model {
namespace {

using torch::Tensor;

const std::filesystem::path kData = std::filesystem::path(FATHOM_ROOT) / "tests/data";

class Golden {
 public:
  explicit Golden(const std::string& name)
      : model(load_checkpoint(kData / name)),
        cases_(Safetensors::open(kData / name / "cases.safetensors")) {}

  Tensor operator[](const std::string& key) const {
    const TensorView& view = cases_.at(key);
    const auto dtype = view.dtype == DType::kF32 ? torch::kFloat32 : torch::kInt;
    return torch::from_blob(const_cast<std::byte*>(view.data), view.shape, dtype).clone();
  }

  Model model;

 private:
  Safetensors cases_;
};

struct Setting {
  std::string model;
  std::string mode;
  AttentionForm form;
  ForwardOptions options() const {
    return {.mode = mode == "plain" ? NumericMode::kPlain : NumericMode::kDeploy, .form = form};
  }
};

std::string name_of(const Setting& s) {
  return s.model.substr(5) + "_" + s.mode + (s.form == AttentionForm::kMha ? "_mha" : "_mqa");
}

double worst_difference(const Tensor& a, const Tensor& b) {
  return (a - b).abs().max().item<double>();
}

// Rows of [N, D] whose greatest difference stays within the tolerance.
double share_of_rows_within(const Tensor& a, const Tensor& b, double tolerance) {
  return (std::get<0>((a - b).abs().max(1)) <= tolerance).to(torch::kFloat32).mean().item<double>();
}

// One prefill of sequence `b` of a case, with everything recorded.
struct Pass {
  Trace trace;
  Tensor logits;
};

Pass prefill(const Golden& golden, const Setting& setting, const Tensor& tokens) {
  const torch::NoGradGuard no_grad;
  KvCache cache(golden.model.config);
  const Segment segment{tokens.size(0), 0, &cache};
  Pass pass;
  const Tensor hidden =
      forward(golden.model, tokens.to(torch::kLong), {&segment, 1}, setting.options(), &pass.trace);
  pass.logits = logits(golden.model, hidden, setting.options());
  return pass;
}

// Selections of rows t >= k must be the reference's; earlier rows hold arbitrary keys there.
int64_t count_wrong_selections(const Tensor& ours, const Tensor& theirs) {
  int64_t wrong = 0;
  for (int64_t t = theirs.size(1); t < theirs.size(0); ++t) wrong += !ours[t].equal(theirs[t]);
  return wrong;
}

// Routing as sets: the reference does not order it.
int64_t count_wrong_routes(const LayerTrace& trace, const Tensor& index, const Tensor& weight) {
  int64_t wrong = 0;
  for (int64_t n = 0; n < index.size(0); ++n) {
    const auto [experts, order] = index[n].sort();
    wrong += !experts.to(torch::kLong).equal(trace.gate_index_NK[n]) ||
             worst_difference(weight[n].index_select(0, order), trace.gate_weight_NK[n]) > 1e-3;
  }
  return wrong;
}

// Plain is held end to end, deploy layer by layer: its roundings make whole passes chaotic.
class GoldenPlainTest : public testing::TestWithParam<Setting> {};
class GoldenDeployTest : public testing::TestWithParam<Setting> {};
class GoldenDecodeTest : public testing::TestWithParam<Setting> {};

TEST_P(GoldenPlainTest, T12PrefillIsTheReferences) {
  const Setting& setting = GetParam();
  const Golden golden(setting.model);
  for (const std::string length : {"short", "long"}) {
    const std::string key = "plain." + length;
    for (int64_t b = 0; b < 2; ++b) {
      const Pass pass = prefill(golden, setting, golden[key + ".tokens"][b]);
      const double difference = worst_difference(pass.logits, golden[key + ".logits"][b]);
      RecordProperty(fmt::format("{}{}_logits", length, b), fmt::format("{:.1e}", difference));
      EXPECT_LE(difference, 1e-3) << key;
      for (int64_t layer = 0; layer < golden.model.config.num_hidden_layers; ++layer) {
        const LayerTrace& trace = pass.trace.layers[layer];
        const std::string at = fmt::format("{}.layer{}", key, layer);
        EXPECT_LE(worst_difference(trace.hidden_ND, golden[at + ".hidden"][b]), 1e-3) << at;
        EXPECT_EQ(count_wrong_selections(trace.topk_NK, golden[at + ".topk"][b]), 0) << at;
        if (!golden.model.config.is_moe_layer(layer)) continue;
        const int64_t tokens = pass.logits.size(0);
        EXPECT_EQ(
            count_wrong_routes(trace, golden[at + ".gate_index"].narrow(0, b * tokens, tokens),
                               golden[at + ".gate_weight"].narrow(0, b * tokens, tokens)),
            0)
            << at;
      }
    }
  }
}

TEST_P(GoldenDecodeTest, LogitsAreTheReferences) {
  const Setting& setting = GetParam();
  const Golden golden(setting.model);
  const torch::NoGradGuard no_grad;
  const auto prefill_length = golden[setting.mode + ".decode.prefill_len"].item<int64_t>();
  const ForwardOptions options = setting.options();
  // The reference prefills in MHA form and decodes in MQA form.
  ForwardOptions prefill_options = options, step_options = options;
  prefill_options.form = AttentionForm::kMha;
  for (int64_t b = 0; b < 2; ++b) {
    const Tensor tokens = golden[setting.mode + ".decode.tokens"][b].to(torch::kLong);
    const Tensor expected = golden[setting.mode + ".decode.logits"][b];
    KvCache cache(golden.model.config);
    std::vector<Tensor> rows;
    for (int64_t at = 0; at < tokens.size(0);) {
      const int64_t count = at == 0 ? prefill_length : 1;
      const Segment segment{count, at, &cache};
      const auto& used = at == 0 ? prefill_options : step_options;
      rows.push_back(logits(golden.model,
                            forward(golden.model, tokens.narrow(0, at, count), {&segment, 1}, used),
                            used));
      at += count;
    }
    const Tensor ours = torch::cat(rows);
    if (setting.mode == "plain") {
      EXPECT_LE(worst_difference(ours, expected), 1e-3);
    } else {
      // Chaotic end to end: a rounding that falls the other way flips a routing further on. What
      // must hold is that most positions agree.
      const double share = share_of_rows_within(ours, expected, 3e-2);
      RecordProperty(fmt::format("decode{}_share", b), fmt::format("{:.3f}", share));
      EXPECT_GE(share, setting.model == "tiny-bf16" ? 0.9 : 0.2);
    }
  }
}

// Calls check(output, expected, input, name) for each layer of the deploy passes on the reference's
// own input, from a cache of `format`.
template <typename Check>
void for_each_deploy_layer(const Setting& setting, CacheFormat format, const Check& check) {
  const Golden golden(setting.model);
  const torch::NoGradGuard no_grad;
  for (const std::string length : {"short", "long"}) {
    for (int64_t layer = 0; layer < golden.model.config.num_hidden_layers; ++layer) {
      for (int64_t b = 0; b < 2; ++b) {
        const std::string key = fmt::format("deploy.{}", length);
        const Tensor expected = golden[fmt::format("{}.layer{}.hidden", key, layer)][b];
        const Tensor input = layer == 0
                                 ? golden.model.weights.embed_tokens
                                       .index_select(0, golden[key + ".tokens"][b].to(torch::kLong))
                                       .to(torch::kFloat32)
                                 : golden[fmt::format("{}.layer{}.hidden", key, layer - 1)][b];
        KvCache cache(golden.model.config, format);
        const Segment segment{input.size(0), 0, &cache};
        LayerTrace trace;
        check(forward_layer(golden.model, layer, input, {&segment, 1}, setting.options(), &trace),
              expected, input, fmt::format("{}_layer{}_{}", length, layer, b));
      }
    }
  }
}

TEST_P(GoldenDeployTest, EveryLayerIsTheReferences) {
  for_each_deploy_layer(
      GetParam(), CacheFormat::kF32,
      [](const Tensor& output, const Tensor& expected, const Tensor&, const std::string& name) {
        const double share = share_of_rows_within(output, expected, 2e-2);
        testing::Test::RecordProperty(name, fmt::format("{:.4f}", share));
        EXPECT_GE(share, 0.97) << name;
      });
}

// As serving does: FP8 rows, whose rotary part is rounded and which the sparse kernels multiply in
// bf16 where the processor can. With FP8 activations behind it a rounding may fall the other way,
// by a sixteenth, so what is held is the distance to the reference, as a share of what the layer
// adds: measured 0.0015 at most for bf16 (0.0007 in f32), 0.09 for FP8 (0.024).
TEST_P(GoldenDeployTest, EveryLayerIsCloseFromAnFp8Cache) {
  const double tolerance = GetParam().model == "tiny-bf16" ? 3e-3 : 0.15;
  for_each_deploy_layer(
      GetParam(), CacheFormat::kFP8,
      [&](const Tensor& output, const Tensor& expected, const Tensor& input,
          const std::string& name) {
        const double distance =
            ((output - expected).norm() / (expected - input).norm()).item<double>();
        testing::Test::RecordProperty(name, fmt::format("{:.4f}", distance));
        EXPECT_LE(distance, tolerance) << name;
      });
}

TEST_P(GoldenDeployTest, IndexScoresAreTheReferences) {
  const Setting& setting = GetParam();
  const Golden golden(setting.model);
  const torch::NoGradGuard no_grad;
  for (int64_t b = 0; b < 2; ++b) {
    const Tensor input = golden["deploy.long.layer1.hidden"][b];
    KvCache cache(golden.model.config);
    const Segment segment{input.size(0), 0, &cache};
    LayerTrace trace;
    forward_layer(golden.model, 2, input, {&segment, 1}, setting.options(), &trace);
    const Tensor ours = trace.index_scores_NS.tril();
    const Tensor theirs = golden["deploy.long.layer2.index_score"][b].tril();
    const double scale = theirs.abs().max().item<double>();
    const Tensor close = ((ours - theirs).abs() <= 1e-4 * scale).to(torch::kFloat32);
    EXPECT_GE(close.mean().item<double>(), 0.99);
  }
}

// The published fix of the indexer's rotary layout (2025-11-17) must matter here: with MLA's
// interleaved layout the selections are wrong.
TEST(Golden, InterleavedIndexerRopeIsWrong) {
  Golden golden("tiny-bf16");
  golden.model.config.indexer_rope_interleave = true;
  const Setting setting{"tiny-bf16", "plain", AttentionForm::kMqa};
  const Pass pass = prefill(golden, setting, golden["plain.long.tokens"][0]);
  EXPECT_GT(
      count_wrong_selections(pass.trace.layers[0].topk_NK, golden["plain.long.layer0.topk"][0]),
      50);
}

// Every chunking of a prompt, every batch and either thread count give the same bits.
TEST(Invariance, ChunksAndBatchesGiveTheSameBits) {
  const Golden golden("tiny-fp8");
  const torch::NoGradGuard no_grad;
  for (const std::string mode : {"plain", "deploy"}) {
    const Setting setting{"tiny-fp8", mode, AttentionForm::kMqa};
    const Tensor tokens = golden["plain.long.tokens"].to(torch::kLong);
    const Pass whole = prefill(golden, setting, tokens[0]);
    KvCache a(golden.model.config), b(golden.model.config);
    std::vector<Tensor> rows;
    int64_t at = 0;
    for (int64_t count : {1, 70, 3, 60, 26}) {
      // The other sequence rides along with chunks of its own.
      const Segment segments[] = {{5, b.num_tokens(), &b}, {count, at, &a}};
      const Tensor batch =
          torch::cat({tokens[1].narrow(0, b.num_tokens(), 5), tokens[0].narrow(0, at, count)});
      const Tensor hidden = forward(golden.model, batch, segments, setting.options());
      rows.push_back(logits(golden.model, hidden, setting.options()).narrow(0, 5, count));
      at += count;
    }
    EXPECT_TRUE(torch::cat(rows).equal(whole.logits)) << mode;
  }
}

std::vector<Setting> settings_of(const std::string& mode) {
  std::vector<Setting> settings;
  for (const char* model : {"tiny-bf16", "tiny-fp8"})
    for (const AttentionForm form : {AttentionForm::kMha, AttentionForm::kMqa})
      settings.push_back({model, mode, form});
  return settings;
}

std::string name_of_info(const testing::TestParamInfo<Setting>& info) {
  return name_of(info.param);
}

INSTANTIATE_TEST_SUITE_P(Golden, GoldenPlainTest, testing::ValuesIn(settings_of("plain")),
                         name_of_info);
INSTANTIATE_TEST_SUITE_P(Golden, GoldenDeployTest, testing::ValuesIn(settings_of("deploy")),
                         name_of_info);
INSTANTIATE_TEST_SUITE_P(Plain, GoldenDecodeTest, testing::ValuesIn(settings_of("plain")),
                         name_of_info);
INSTANTIATE_TEST_SUITE_P(Deploy, GoldenDecodeTest, testing::ValuesIn(settings_of("deploy")),
                         name_of_info);

}  // namespace
}  // namespace fathom::model
