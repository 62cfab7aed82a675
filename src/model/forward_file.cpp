#include "model/forward_file.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <limits>
#include <map>

#include "base/file.h"
#include "base/progress.h"
#include "model/attention_cost.h"
#include "model/checkpoint.h"
#include "model/safetensors.h"

namespace fathom::model {
namespace {

using torch::Tensor;

Tensor read_tokens(const std::string& where, const Config& config,
                   const std::filesystem::path& out) {
  const size_t colon = where.rfind(".safetensors:");
  const std::string path = colon == std::string::npos ? where : where.substr(0, colon + 12);
  base::check_is_not_read(out, path);
  const auto file = Safetensors::open(path);
  if (colon == std::string::npos && file.tensors().size() != 1)
    fail("--tokens {}: the file holds {} tensors; name one as FILE:KEY", where,
         file.tensors().size());
  const TensorView& view = colon == std::string::npos ? file.tensors().begin()->second
                                                      : file.at(where.substr(colon + 13));
  if (view.shape.size() != 2 || (view.dtype != DType::kI32 && view.dtype != DType::kI64))
    fail("--tokens {}: expected a matrix [B, T] of I32 or I64", where);
  const auto dtype = view.dtype == DType::kI32 ? torch::kInt : torch::kLong;
  Tensor raw = torch::empty(view.shape, dtype);
  std::memcpy(raw.data_ptr(), view.data, view.num_bytes());
  Tensor tokens = raw.to(torch::kLong);
  if (tokens.numel() == 0) fail("--tokens {}: there are no tokens", where);
  const auto least = tokens.min().item<int64_t>(), most = tokens.max().item<int64_t>();
  if (least < 0 || most >= config.vocab_size)
    fail("--tokens {}: ids reach from {} to {}; the vocabulary has {}", where, least, most,
         config.vocab_size);
  if (tokens.size(1) > config.max_position_embeddings)
    fail("--tokens {}: {} tokens a row; the model's context (max_position_embeddings) is {}", where,
         tokens.size(1), config.max_position_embeddings);
  return tokens;
}

// One row of the batch, through the cache where `prefill` says so.
struct RowResult {
  Tensor logits_TV;
  std::vector<Tensor> hidden_TD, topk_TK;  // per layer
};

// Tokens of the pass at `at`, and its form. Of a prefill the positions below the crossover go as
// one masked pass, the others as one gathered pass: how long the row is changes no position's bits.
struct NextPass {
  int64_t count;
  AttentionForm form;
};

NextPass next_pass(const Config& config, const std::string& form, int64_t at, int64_t prompt) {
  const int64_t count = at < prompt ? prompt - at : 1;
  if (form != "auto") return {count, form == "mqa" ? AttentionForm::kMqa : AttentionForm::kMha};
  const int64_t crossover =
      whole_sequence_crossover(config, kTypicalRates).value_or(std::numeric_limits<int64_t>::max());
  if (at >= prompt) return {1, choose_form(config, kTypicalRates, 1, at)};
  if (at >= crossover) return {count, AttentionForm::kMqa};
  return {std::min(count, crossover - at), AttentionForm::kMha};
}

RowResult run_row(const Model& model, const Tensor& tokens_T, const ForwardFileOptions& options) {
  const int64_t length = tokens_T.size(0), layers = model.config.num_hidden_layers;
  const int64_t prompt = options.prefill.value_or(length);
  KvCache cache(model.config);
  std::vector<Tensor> logit_rows;
  std::vector<std::vector<Tensor>> hidden(layers), topk(layers);
  for (int64_t at = 0; at < length;) {
    const auto [count, form] = next_pass(model.config, options.form, at, prompt);
    const ForwardOptions forward_options{
        .mode = options.mode == "deploy" ? NumericMode::kDeploy : NumericMode::kPlain,
        .form = form};
    const Segment segment{count, at, &cache};
    Trace trace;
    const Tensor final_hidden = forward(model, tokens_T.narrow(0, at, count), {&segment, 1},
                                        forward_options, options.dump_layers ? &trace : nullptr);
    logit_rows.push_back(logits(model, final_hidden, forward_options));
    for (int64_t i = 0; i < static_cast<int64_t>(trace.layers.size()); ++i) {
      hidden[i].push_back(trace.layers[i].hidden_ND);
      // Earlier passes know fewer keys than the whole row: widen to one shape.
      const Tensor& keys = trace.layers[i].topk_NK;
      const int64_t width = std::min(model.config.index_topk, length);
      topk[i].push_back(torch::constant_pad_nd(keys, {0, width - keys.size(1)}, -1));
    }
    at += count;
  }
  RowResult result{torch::cat(logit_rows), {}, {}};
  if (options.dump_layers)
    for (int64_t i = 0; i < layers; ++i) {
      result.hidden_TD.push_back(torch::cat(hidden[i]));
      result.topk_TK.push_back(torch::cat(topk[i]));
    }
  return result;
}

}  // namespace

void run_forward_file(const ForwardFileOptions& options) {
  const torch::NoGradGuard no_grad;
  const Model model = load_checkpoint(options.model);
  const Tensor tokens_BT = read_tokens(options.tokens, model.config, options.out);
  check_is_no_part_of(options.out, options.model);
  if (options.prefill && (*options.prefill < 1 || *options.prefill > tokens_BT.size(1)))
    fail("--prefill {}: expected 1 to the {} tokens of a row", *options.prefill, tokens_BT.size(1));
  std::map<std::string, std::vector<Tensor>> rows;
  base::Progress progress("forward", static_cast<double>(tokens_BT.numel()), "tokens");
  for (int64_t b = 0; b < tokens_BT.size(0); ++b) {
    const RowResult row = run_row(model, tokens_BT[b], options);
    if (!torch::isfinite(row.logits_TV).all().item<bool>())
      fail("{}: the logits of row {} are not finite; the weights are damaged",
           options.model.string(), b);
    rows["logits"].push_back(row.logits_TV);
    for (size_t i = 0; i < row.hidden_TD.size(); ++i) {
      rows[fmt::format("layer{}.hidden", i)].push_back(row.hidden_TD[i]);
      rows[fmt::format("layer{}.topk", i)].push_back(row.topk_TK[i]);
    }
    progress.update(static_cast<double>((b + 1) * tokens_BT.size(1)));
  }
  std::vector<Tensor> kept;
  std::vector<NamedTensor> tensors;
  for (const auto& [name, parts] : rows) {
    kept.push_back(torch::stack(parts).contiguous());
    const bool is_float = kept.back().scalar_type() == torch::kFloat32;
    tensors.push_back({name,
                       {is_float ? DType::kF32 : DType::kI32, kept.back().sizes().vec(),
                        static_cast<const std::byte*>(kept.back().data_ptr())}});
  }
  write_safetensors(options.out, tensors);
}

}  // namespace fathom::model
