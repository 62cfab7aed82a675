#include "bench/cost.h"

#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "base/file.h"
#include "base/parallel.h"
#include "bench/attention_rates.h"
#include "bench/machine.h"
#include "bench/plot.h"
#include "bench/real_layer.h"
#include "bench/timing.h"
#include "model/checkpoint.h"

namespace fathom::bench {
namespace {

using torch::Tensor;
using Form = model::AttentionForm;

// Keys and values of every head, expanded for all keys: at V3.2's shape 160 KB a key.
constexpr int64_t kMostMaskedKeys = 16384;

struct Curve {
  std::string name;
  bool is_sparse;
  Form form;
  bool is_decode;
  std::vector<std::pair<double, double>> points = {};
};

struct Measurement {
  model::Model model;
  Tensor tokens, hidden;  // of a chunk

  double milliseconds(model::KvCache& cache, const Curve& curve, int64_t count, int repeats) const {
    model::ForwardOptions options = model::serving_options(model);
    options.form = curve.form;
    options.sparse = curve.is_sparse;
    const int64_t position = cache.num_tokens();
    const model::Segment segment{count, position, &cache};
    const bool is_alone = base::num_threads() == 1;
    const double seconds = best_seconds({repeats, repeats, 0, is_alone}, [&](int) {
      if (tokens.defined()) {
        model::forward(model, tokens.narrow(0, 0, count), {&segment, 1}, options);
        cache.truncate(position);
      } else {
        model::forward_layer(model, 0, hidden.narrow(0, 0, count), {&segment, 1}, options);
      }
    });
    return 1e3 * seconds / static_cast<double>(count);
  }
};

Measurement prepare(const CostOptions& options) {
  torch::manual_seed(1);
  if (options.model.empty()) {
    Measurement real{random_real_layer(32), {}, {}};
    real.hidden = torch::randn({options.chunk, real.model.config.hidden_size});
    return real;
  }
  Measurement whole{model::load_checkpoint(options.model), {}, {}};
  whole.tokens = torch::randint(whole.model.config.vocab_size, {options.chunk}, torch::kLong);
  return whole;
}

// Where `falling` goes below `rising` for good; nothing if it does not.
std::optional<double> crossover(const Curve& falling, const Curve& rising) {
  std::optional<double> at;
  const auto size = std::min(falling.points.size(), rising.points.size());
  for (size_t i = 1; i < size; ++i) {
    const double before = falling.points[i - 1].second - rising.points[i - 1].second;
    const double after = falling.points[i].second - rising.points[i].second;
    if (after >= 0) at.reset();
    if (before < 0 || after >= 0) continue;
    const double share = before / (before - after);
    at = falling.points[i - 1].first +
         share * (falling.points[i].first - falling.points[i - 1].first);
  }
  return at;
}

Json as_json(const Curve& curve) {
  Json points = Json::array();
  for (const auto& [position, ms] : curve.points)
    points.push_back({{"position", position}, {"ms_per_token", ms}});
  return points;
}

PlotPanel panel_of(const std::string& title, const std::vector<const Curve*>& curves,
                   int64_t index_topk, const std::vector<PlotMark>& crossovers) {
  PlotPanel panel{title, "position (tokens before)", "ms a token", {}, crossovers};
  for (const Curve* curve : curves) panel.series.push_back({curve->name, curve->points});
  panel.marks.push_back({static_cast<double>(index_topk), fmt::format("top-k {}", index_topk)});
  return panel;
}

// What model/attention_cost makes of this machine's rates.
void add_computed(const model::Config& config, const model::AttentionRates& rates, int64_t chunk,
                  Json& result) {
  result["gop_per_s"] = {{"expansion", rates.expansion / 1e9},
                         {"absorption", rates.absorption / 1e9},
                         {"masked", rates.masked / 1e9},
                         {"gathered", rates.gathered / 1e9},
                         {"indexer", rates.indexer / 1e9}};
  Json& crossovers = result["crossovers"];
  if (const auto at = model::gathering_crossover(config, rates, chunk))
    crossovers["prefill_gathered_below_masked_computed"] = *at;
  if (const auto at = model::whole_sequence_crossover(config, rates))
    crossovers["whole_sequence_gathered_below_masked_computed"] = *at;
}

}  // namespace

Json measure_cost(const CostOptions& options) {
  if (std::adjacent_find(options.positions.begin(), options.positions.end(),
                         std::greater_equal<>()) != options.positions.end())
    fail("--positions: expected ascending ones, each once");
  check_can_draw(options.svg);
  if (options.num_threads > 0) base::set_num_threads(options.num_threads);
  const torch::NoGradGuard no_grad;
  Measurement measurement = prepare(options);
  model::Config& config = measurement.model.config;
  config.max_position_embeddings = int64_t{1} << 24;  // positions beyond the trained cost the same
  Curve decode_dense{"decode, dense", false, Form::kMqa, true};
  Curve decode_dsa{"decode, DSA", true, Form::kMqa, true};
  Curve prefill_dense{"prefill, dense", false, Form::kMqa, false};
  Curve prefill_masked{"prefill, DSA as a mask (MHA)", true, Form::kMha, false};
  Curve prefill_dsa{"prefill, DSA gathered (MQA)", true, Form::kMqa, false};
  model::KvCache cache(config, model::CacheFormat::kFP8);
  const int64_t resident_before = resident_bytes();
  for (const int64_t position : options.positions) {
    fill(cache, position - cache.num_tokens());
    for (Curve* curve :
         {&decode_dense, &decode_dsa, &prefill_dense, &prefill_masked, &prefill_dsa}) {
      if (!curve->is_decode && !options.has_prefill) continue;
      if (curve == &prefill_masked && position > kMostMaskedKeys) continue;
      curve->points.emplace_back(
          position, measurement.milliseconds(cache, *curve, curve->is_decode ? 1 : options.chunk,
                                             options.repeats));
    }
  }
  const int64_t resident_growth = resident_bytes() - resident_before;
  const MachinePeaks peaks = measure_machine();
  const std::string name =
      options.model.empty() ? "one V3.2 layer" : options.model.filename().string();
  Json result = {
      {"model", name},
      {"threads", base::num_threads()},
      {"chunk", options.chunk},
      {"index_topk", config.index_topk},
      {"cache_bytes_per_token", cache.layout().bytes_per_token()},
      {"cache_bytes", cache.layout().bytes_per_token() * cache.num_tokens()},
      {"resident_growth_bytes", resident_growth},
      {"machine",
       {{"f32_gflop_per_s", peaks.f32_gflop_per_s}, {"read_gbyte_per_s", peaks.read_gbyte_per_s}}},
      {"decode", {{"dense", as_json(decode_dense)}, {"dsa", as_json(decode_dsa)}}},
      {"prefill",
       {{"dense", as_json(prefill_dense)},
        {"dsa_masked", as_json(prefill_masked)},
        {"dsa_gathered", as_json(prefill_dsa)}}},
      {"crossovers", Json::object()}};
  std::vector<PlotMark> decode_marks, prefill_marks;
  const auto note = [&](const char* name, const Curve& falling, const Curve& rising,
                        std::vector<PlotMark>& marks, const char* label) {
    const auto at = crossover(falling, rising);
    if (!at) return;
    result["crossovers"][name] = *at;
    marks.push_back({*at, fmt::format("{} from {:.0f}", label, *at)});
  };
  note("decode_dsa_below_dense", decode_dsa, decode_dense, decode_marks, "DSA cheaper");
  note("prefill_dsa_below_dense", prefill_dsa, prefill_dense, prefill_marks, "DSA cheaper");
  note("prefill_gathered_below_masked", prefill_dsa, prefill_masked, prefill_marks,
       "gathering cheaper");
  if (options.has_prefill)
    add_computed(
        config,
        measure_attention_rates(measurement.model, cache.layout().latent().format, options.chunk),
        options.chunk, result);
  std::vector<PlotPanel> panels;
  if (options.has_prefill)
    panels.push_back(panel_of("Prefill of " + name, {&prefill_dense, &prefill_masked, &prefill_dsa},
                              config.index_topk, prefill_marks));
  panels.push_back(
      panel_of("Decode of " + name, {&decode_dense, &decode_dsa}, config.index_topk, decode_marks));
  if (!options.svg.empty()) base::write_file_atomically(options.svg, draw_svg(panels));
  return result;
}

}  // namespace fathom::bench
