#include "bench/training_report.h"

#include <fmt/format.h>

#include <numeric>
#include <optional>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "bench/plot.h"
#include "pretrain/run_folder.h"

namespace fathom::bench {
namespace {

constexpr size_t kMostPoints = 200;

struct Run {
  std::string name;
  std::string stage;
  std::vector<Json> lines;  // of metrics.jsonl, in order
};

struct Chart {
  const char* title;
  const char* key;
  const char* unit;
};
constexpr Chart kCharts[] = {
    {"Validation", "validation_bits_per_byte", "bits per byte"},
    {"Loss", "loss", "nats per token"},
    {"Loss of the token after the next (MTP)", "mtp_loss", "nats per token"},
    {"MTP against the model: KL, training", "mtp_divergence", "nats per token"},
    {"MTP against the model: KL, validation", "validation_mtp_divergence", "nats per token"},
    {"MTP against the model: overlap, training", "mtp_overlap", "share of the probability"},
    {"MTP against the model: overlap, validation", "validation_mtp_overlap",
     "share of the probability"},
    {"Indexer: KL from attention", "indexer_loss", "nats, mean over layers"},
    {"Indexer: recall of attention's mass, training", "indexer_recall", "share"},
    {"Indexer: recall of attention's mass, validation", "validation_indexer_recall",
     "share, mean over layers"},
    {"Expert balance (MaxVio)", "max_violation", "fullest load / mean - 1"},
    {"Gradient norm before clipping", "gradient_norm", ""},
    {"Gradient norm of the indexers", "indexer_gradient_norm", ""},
    {"Learning rate", "learning_rate", ""},
    {"Time of a step", "step_seconds", "seconds"},
};

// Only a checkpoint says it; a run that has none, or whose checkpoints were removed, has its curves
// all the same.
std::string stage_of(const std::filesystem::path& folder) {
  try {
    if (const auto checkpoint = pretrain::RunFolder(folder).latest())
      return pretrain::RunFolder::load_state(*checkpoint).recipe.value("stage", "dense");
  } catch (const Error&) {
  }
  return "unknown";
}

Run read_run(const std::filesystem::path& folder) {
  const auto path = folder / "metrics.jsonl";
  if (!std::filesystem::exists(path))
    fail("{}: no metrics.jsonl; expected a folder that pretrain --run wrote", folder.string());
  Run run{folder.filename().string(), stage_of(folder), pretrain::RunFolder::read_metrics(path)};
  if (run.name.empty()) run.name = folder.parent_path().filename().string();
  double tokens = 0;
  std::optional<double> seconds;
  for (Json& json : run.lines) {
    tokens = json.value("tokens", tokens);
    json["tokens"] = tokens;  // a validation's line has none of its own
    if (json.contains("seconds")) {
      const double now = json["seconds"];
      // Runs of before metrics held it: with what validations and checkpoints took in between.
      if (seconds && !json.contains("step_seconds")) json["step_seconds"] = now - *seconds;
      seconds = now;
    }
  }
  return run;
}

// A number, or the mean of a list of them.
std::optional<double> value_of(const Json& line, const char* key) {
  if (!line.contains(key)) return {};
  const Json& value = line[key];
  if (value.is_number()) return value.get<double>();
  if (!value.is_array() || value.empty()) return {};
  const auto values = value.get<std::vector<double>>();
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

PlotSeries series_of(const Run& run, const char* key) {
  PlotSeries all{run.name, {}, -1};
  for (const Json& line : run.lines)
    if (const auto value = value_of(line, key)) all.points.emplace_back(line["tokens"], *value);
  if (all.points.size() <= kMostPoints) return all;
  PlotSeries means{run.name, {}, -1};
  for (size_t i = 0; i < kMostPoints; ++i) {
    const size_t begin = i * all.points.size() / kMostPoints;
    const size_t end = (i + 1) * all.points.size() / kMostPoints;
    double x = 0, y = 0;
    for (size_t j = begin; j < end; ++j) {
      x += all.points[j].first;
      y += all.points[j].second;
    }
    const auto count = static_cast<double>(end - begin);
    means.points.emplace_back(x / count, y / count);
  }
  return means;
}

std::string table(const std::vector<Run>& runs) {
  std::string out =
      "<table><tr><th>run</th><th>stage</th><th>steps</th><th>tokens</th><th>hours</th>"
      "<th>last validation, bits per byte</th></tr>\n";
  for (const Run& run : runs) {
    int64_t steps = 0;
    double tokens = 0, seconds = 0;
    std::string bits = "none";
    for (const Json& line : run.lines) {
      steps = line.value("step", steps);
      tokens = line.value("tokens", tokens);
      seconds = line.value("seconds", seconds);
      if (const auto value = value_of(line, "validation_bits_per_byte"))
        bits = fmt::format("{:.4f}", *value);
    }
    out += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.0f}</td><td>{:.2f}</td><td>{}</td></tr>\n",
        escape_markup(run.name), escape_markup(run.stage), steps, tokens, seconds / 3600, bits);
  }
  return out + "</table>\n";
}

}  // namespace

void write_training_report(const TrainingReportOptions& options) {
  if (options.runs.empty() || options.runs.size() > 8)
    fail("{} runs; expected 1 to 8 folders", options.runs.size());
  std::vector<Run> runs;
  for (const auto& folder : options.runs) runs.push_back(read_run(folder));
  std::string html =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Training runs"
      "</title>\n<style>\nbody { font: 14px sans-serif; color: #222; margin: 24px; }\n"
      "table { border-collapse: collapse; margin-bottom: 16px; }\n"
      "th, td { border-bottom: 1px solid #ddd; padding: 4px 12px; text-align: left; }\n"
      ".charts { display: flex; flex-wrap: wrap; gap: 16px; }\n"
      "svg { max-width: 100%; height: auto; }\n</style></head>\n<body><h1>Training runs</h1>\n";
  html += table(runs) + "<div class=\"charts\">\n";
  for (const Chart& chart : kCharts) {
    PlotPanel panel{chart.title, "tokens", chart.unit, {}, {}, false};
    for (size_t i = 0; i < runs.size(); ++i) {
      PlotSeries series = series_of(runs[i], chart.key);
      series.colour = static_cast<int>(i);
      if (!series.points.empty()) panel.series.push_back(std::move(series));
    }
    if (!panel.series.empty()) html += draw_svg({panel});
  }
  base::write_file_atomically(options.out, html + "</div></body></html>\n");
}

}  // namespace fathom::bench
