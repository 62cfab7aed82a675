#include "bench/experiment_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "bench/plot.h"
#include "pretrain/run_folder.h"

namespace fathom::bench {
namespace {

namespace fs = std::filesystem;

using Lines = std::vector<Json>;  // of one metrics.jsonl

// A line without tokens of its own, a validation's, gets those of the step before it.
Lines read_lines(const fs::path& path) {
  Lines lines = pretrain::RunFolder::read_metrics(path);
  double tokens = 0;
  for (Json& json : lines) {
    tokens = json.value("tokens", tokens);
    json["tokens"] = tokens;
  }
  return lines;
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double deviation(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  double squares = 0;
  for (double value : values) squares += (value - mean(values)) * (value - mean(values));
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

double scalar(const Json& value) {
  return value.is_array() ? mean(value.get<std::vector<double>>()) : value.get<double>();
}

// One run's value of a metric; nothing where it has none.
std::optional<Json> value_of(const Lines& lines, const Json& metric) {
  const std::string key = metric.at("key"), take = metric.value("take", "last");
  std::vector<double> values;
  std::optional<Json> last;
  for (const Json& line : lines) {
    if (!line.contains(key)) continue;
    last = line[key];
    values.push_back(scalar(*last));
  }
  if (values.empty() || take == "last") return last;
  if (take == "max") return *std::max_element(values.begin(), values.end());
  if (take == "mean") return mean(values);
  fail("metric \"{}\": \"take\" is \"{}\"; expected last, max or mean", metric.value("name", key),
       take);
}

class Experiment {
 public:
  explicit Experiment(const ExperimentReportOptions& options)
      : options_(options), file_(base::read_json_file(options.experiment)) {
    for (const char* key : {"title", "seeds", "arms", "metrics", "pass"})
      if (!file_.contains(key))
        fail("{}: \"{}\" is missing; expected an experiment", options.experiment.string(), key);
    for (const char* key : {"seeds", "arms", "metrics", "pass"})
      if (!file_[key].is_array() || file_[key].empty())
        fail("{}: \"{}\" is {}; expected a list of at least one", options.experiment.string(), key,
             file_[key].dump());
    if (!fs::is_directory(options.runs))
      fail("{}: no such folder; expected one with seed-N/ARM, each a run of pretrain",
           options.runs.string());
    for (const std::string arm : file_["arms"])
      for (const int64_t seed : file_["seeds"]) {
        const auto path = options.runs / fmt::format("seed-{}", seed) / arm / "metrics.jsonl";
        if (fs::exists(path)) runs_[arm].push_back(read_lines(path));
      }
    if (runs_.empty())
      fail(
          "{}: holds no run of the experiment; expected seed-{}/{}/metrics.jsonl or others of its "
          "seeds and arms",
          options.runs.string(), file_["seeds"][0].get<int64_t>(),
          file_["arms"][0].get<std::string>());
  }

  Json judge() const {
    Json result = {{"title", file_["title"]}, {"arms", Json::object()}, {"pass", Json::array()}};
    for (const std::string arm : file_["arms"]) result["arms"][arm] = figures_of(arm);
    for (const Json& criterion : file_["pass"])
      result["pass"].push_back(verdict_of(criterion, result["arms"]));
    return result;
  }

  std::string draw() const {
    std::vector<PlotPanel> panels;
    for (const Json& metric : file_["metrics"]) {
      if (!metric.value("curve", false)) continue;
      PlotPanel panel{metric.at("name"), "tokens", metric.value("unit", ""), {}, {}, false};
      for (size_t i = 0; i < file_["arms"].size(); ++i)
        if (PlotSeries series = curve_of(file_["arms"][i], metric.at("key"));
            !series.points.empty()) {
          series.colour = static_cast<int>(i);
          panel.series.push_back(std::move(series));
        }
      if (!panel.series.empty()) panels.push_back(std::move(panel));
    }
    return draw_svg(panels);
  }

 private:
  Json figures_of(const std::string& arm) const {
    const auto found = runs_.find(arm);
    if (found == runs_.end()) return {{"seeds", 0}};
    Json figures = {{"seeds", found->second.size()}};
    for (const Json& metric : file_["metrics"]) {
      std::vector<double> values;
      Json lists = Json::array();
      for (const Lines& lines : found->second)
        if (const auto value = value_of(lines, metric)) {
          values.push_back(scalar(*value));
          if (value->is_array()) lists.push_back(*value);
        }
      if (values.empty()) continue;
      Json& entry = figures[metric.at("name").get<std::string>()];
      entry = {{"mean", mean(values)}, {"deviation", deviation(values)}, {"seeds", values}};
      if (!lists.empty()) entry["by_layer"] = lists;
    }
    return figures;
  }

  Json verdict_of(const Json& criterion, const Json& arms) const {
    // Not a number where it has not run.
    const auto mean_of = [&](const std::string& arm, const std::string& metric) {
      if (!arms.contains(arm))
        fail("{}: \"pass\" names the arm \"{}\", which is not declared",
             options_.experiment.string(), arm);
      if (std::none_of(file_["metrics"].begin(), file_["metrics"].end(),
                       [&](const Json& declared) { return declared.at("name") == metric; }))
        fail("{}: \"pass\" names the metric \"{}\", which is not declared",
             options_.experiment.string(), metric);
      if (!arms[arm].contains(metric)) return std::nan("");
      return arms[arm][metric]["mean"].get<double>();
    };
    if (!criterion.contains("at_most") && !criterion.contains("at_least"))
      fail("{}: \"{}\" has neither at_most nor at_least", options_.experiment.string(),
           criterion.value("what", ""));
    const std::string metric = criterion.at("metric");
    const std::string other_metric = criterion.value("other_metric", metric);
    double value = mean_of(criterion.at("of"), metric);
    if (criterion.contains("over")) value /= mean_of(criterion["over"], other_metric);
    if (criterion.contains("minus")) value -= mean_of(criterion["minus"], other_metric);
    Json result = criterion;
    result["verdict"] = "not run";
    if (std::isnan(value)) return result;
    result["value"] = value;
    const bool is_passed = value <= criterion.value("at_most", HUGE_VAL) &&
                           value >= criterion.value("at_least", -HUGE_VAL);
    result["verdict"] = is_passed ? "passed" : "failed";
    return result;
  }

  // Mean over the seeds of what stands at the same number of tokens.
  PlotSeries curve_of(const std::string& arm, const std::string& key) const {
    std::map<double, std::vector<double>> by_tokens;
    if (const auto found = runs_.find(arm); found != runs_.end())
      for (const Lines& lines : found->second)
        for (const Json& line : lines)
          if (line.contains(key)) by_tokens[line["tokens"]].push_back(scalar(line[key]));
    PlotSeries series{arm, {}, -1};
    for (const auto& [tokens, values] : by_tokens) series.points.emplace_back(tokens, mean(values));
    return series;
  }

  const ExperimentReportOptions& options_;
  Json file_;
  std::map<std::string, std::vector<Lines>> runs_;  // by arm, of the seeds that are there
};

// One seed says nothing of the spread.
std::string figure_of(const Json& figure, int64_t num_seeds) {
  const auto mean = figure["mean"].get<double>();
  return num_seeds < 2 ? fmt::format(" {:.4f} |", mean)
                       : fmt::format(" {:.4f} ± {:.4f} |", mean, figure["deviation"].get<double>());
}

// A table for each metric that has a value a layer: means over the seeds.
std::string layers_of(const Json& result, const Json& metrics) {
  std::string out;
  for (const Json& metric : metrics) {
    const std::string name = metric.at("name");
    std::string header = fmt::format("\n| {}, by layer | |\n|---|---|\n", name);
    for (const auto& [arm, figures] : result["arms"].items()) {
      const Json seeds = figures.value(name, Json::object()).value("by_layer", Json::array());
      if (seeds.empty()) continue;
      out += std::exchange(header, "") + fmt::format("| {} |", arm);
      for (size_t layer = 0; layer < seeds[0].size(); ++layer) {
        std::vector<double> values;
        for (const Json& layers : seeds) values.push_back(layers[layer]);
        out += fmt::format(" {:.4f}", mean(values));
      }
      out += " |\n";
    }
  }
  return out;
}

std::string table_of(const Json& result, const Json& metrics) {
  std::string out = fmt::format("# {}\n\n| arm | seeds |", result["title"].get<std::string>());
  std::string rule = "\n|---|---|";
  for (const Json& metric : metrics) {
    out += fmt::format(" {} |", metric.at("name").get<std::string>());
    rule += "---|";
  }
  out += rule + "\n";
  for (const auto& [arm, figures] : result["arms"].items()) {
    out += fmt::format("| {} | {} |", arm, figures["seeds"].get<int64_t>());
    for (const Json& metric : metrics) {
      const std::string name = metric.at("name");
      if (figures.contains(name))
        out += figure_of(figures[name], figures["seeds"].get<int64_t>());
      else
        out += " |";
    }
    out += "\n";
  }
  out += layers_of(result, metrics);
  out += "\n| declared before the run | value | bound | |\n|---|---|---|---|\n";
  for (const Json& criterion : result["pass"]) {
    const bool is_most = criterion.contains("at_most");
    out += fmt::format(
        "| {} | {} | {} {} | {} |\n", criterion.at("what").get<std::string>(),
        criterion.contains("value") ? fmt::format("{:.4f}", criterion["value"].get<double>()) : "",
        is_most ? "at most" : "at least", criterion[is_most ? "at_most" : "at_least"].get<double>(),
        criterion["verdict"].get<std::string>());
  }
  return out;
}

}  // namespace

Json report_experiment(const ExperimentReportOptions& options) {
  const Experiment experiment(options);
  const Json result = experiment.judge();
  const Json file = base::read_json_file(options.experiment);
  const std::string name = options.experiment.stem().string();
  fs::create_directories(options.out);
  base::write_file_atomically(options.out / (name + ".json"), result.dump(2) + "\n");
  base::write_file_atomically(options.out / (name + ".md"), table_of(result, file["metrics"]));
  base::write_file_atomically(options.out / (name + ".svg"), experiment.draw());
  return result;
}

}  // namespace fathom::bench
