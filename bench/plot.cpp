#include "bench/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/file.h"

namespace fathom::bench {
namespace {

constexpr double kWidth = 560, kHeight = 400;
constexpr double kLeft = 64, kRight = 16, kTop = 36, kBottom = 48;
constexpr double kPlotWidth = kWidth - kLeft - kRight, kPlotHeight = kHeight - kTop - kBottom;
constexpr size_t kPanelColumns = 2;
constexpr size_t kShortName = 19;  // characters that leave room for three in a line
constexpr double kLegendLine = 17;
constexpr size_t kMostCircles = 30;  // of a line; more would hide it
// Told apart by readers who do not see all colours (Okabe and Ito).
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                    "#e69f00", "#56b4e9", "#882255", "#777777"};

// 1, 2 or 5 times a power of ten, so that about five of them reach `largest`.
double tick_step(double largest) {
  const double rough = largest / 5, power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * power >= rough) return factor * power;
  return 10 * power;
}

std::string tick_label(double value) {
  if (value >= 1e6) return fmt::format("{:g}M", value / 1e6);
  if (value >= 10000) return fmt::format("{:g}K", value / 1000);
  return fmt::format("{:g}", value);
}

size_t legend_columns(const PlotPanel& panel) {
  const bool is_short = std::all_of(panel.series.begin(), panel.series.end(),
                                    [](const auto& s) { return s.name.size() <= kShortName; });
  return is_short ? 3 : 2;
}

double legend_height(const PlotPanel& panel) {
  const size_t columns = legend_columns(panel);
  return kLegendLine * static_cast<double>((panel.series.size() + columns - 1) / columns);
}

class Panel {
 public:
  explicit Panel(const PlotPanel& panel) : panel_(panel) {
    CHECK_LE(panel.series.size(), std::size(kColours));
    for (const PlotSeries& series : panel.series) {
      for (const auto& [x, y] : series.points) {
        largest_x_ = std::max(largest_x_, x);
        largest_y_ = std::max(largest_y_, y);
      }
    }
    if (largest_x_ == 0) largest_x_ = 1;  // one point, at the beginning
    double smallest = largest_y_;
    for (const PlotSeries& series : panel.series)
      for (const auto& [x, y] : series.points) smallest = std::min(smallest, y);
    const double margin = (largest_y_ - (panel.is_from_zero ? 0 : smallest)) * 0.05;
    largest_y_ += margin;
    if (!panel.is_from_zero) smallest_y_ = std::max(0.0, smallest - margin);
    if (largest_y_ - smallest_y_ < 1e-9) smallest_y_ = 0;
  }

  std::string draw(double x, double y) const {
    std::string out = fmt::format("<g transform=\"translate({},{})\">\n", x, y);
    out += fmt::format("<text x=\"{}\" y=\"20\" class=\"title\">{}</text>\n", kLeft,
                       escape_markup(panel_.title));
    out += axes() + marks() + lines() + legend();
    return out + "</g>\n";
  }

 private:
  double x_of(double x) const { return kLeft + x / largest_x_ * kPlotWidth; }
  double y_of(double y) const {
    return kTop + (largest_y_ - y) / (largest_y_ - smallest_y_) * kPlotHeight;
  }

  std::string axes() const {
    std::string out;
    const double bottom = kTop + kPlotHeight;
    for (double x = 0; x <= largest_x_; x += tick_step(largest_x_))
      out += fmt::format(
          "<line x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{0:.1f}\" y2=\"{2}\" class=\"grid\"/>"
          "<text x=\"{0:.1f}\" y=\"{3}\" text-anchor=\"middle\">{4}</text>\n",
          x_of(x), kTop, bottom, bottom + 16, tick_label(x));
    const double step = tick_step(largest_y_ - smallest_y_);
    for (double y = std::ceil(smallest_y_ / step) * step; y <= largest_y_; y += step)
      out += fmt::format(
          "<line x1=\"{0}\" y1=\"{1:.1f}\" x2=\"{2}\" y2=\"{1:.1f}\" class=\"grid\"/>"
          "<text x=\"{3}\" y=\"{4:.1f}\" text-anchor=\"end\">{5}</text>\n",
          kLeft, y_of(y), kLeft + kPlotWidth, kLeft - 6, y_of(y) + 4, tick_label(y));
    out += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                       kLeft + kPlotWidth / 2, kHeight - 12, escape_markup(panel_.x_label));
    out += fmt::format(
        "<text transform=\"translate(14,{:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
        kTop + kPlotHeight / 2, escape_markup(panel_.y_label));
    return out;
  }

  std::string marks() const {
    std::string dashes, notes;
    // Where the lines are not: at the top where costs rise, else at the bottom.
    const double step = panel_.is_from_zero ? 16 : -16;
    double y = panel_.is_from_zero ? kTop + 14 : kTop + kPlotHeight - 8;
    for (const PlotMark& mark : panel_.marks) {
      if (mark.x > largest_x_) continue;
      const bool is_right = mark.x > largest_x_ / 2;
      dashes += fmt::format(
          "<line x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{0:.1f}\" y2=\"{2}\" class=\"mark\"/>\n",
          x_of(mark.x), kTop, kTop + kPlotHeight);
      notes +=
          fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"{}\" class=\"note\">{}</text>\n",
                      x_of(mark.x) + (is_right ? -4 : 4), y, is_right ? "end" : "start",
                      escape_markup(mark.label));
      y += step;
    }
    return dashes + notes;
  }

  std::string lines() const {
    std::string out;
    for (size_t i = 0; i < panel_.series.size(); ++i) {
      std::string points;
      for (const auto& [x, y] : panel_.series[i].points) {
        points += fmt::format("{:.1f},{:.1f} ", x_of(x), y_of(y));
        if (panel_.series[i].points.size() > kMostCircles) continue;
        out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\" fill=\"{}\"/>\n", x_of(x),
                           y_of(y), colour(i));
      }
      out +=
          fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n",
                      points, colour(i));
    }
    return out;
  }

  const char* colour(size_t i) const {
    const int own = panel_.series[i].colour;
    return kColours[own >= 0 ? static_cast<size_t>(own) : i];
  }

  // Under the axis, where no line is.
  std::string legend() const {
    std::string out;
    const size_t columns = legend_columns(panel_);
    for (size_t i = 0; i < panel_.series.size(); ++i) {
      const double x =
          kLeft + kPlotWidth * static_cast<double>(i % columns) / static_cast<double>(columns);
      const double y = kHeight + 4 + kLegendLine * static_cast<double>(i / columns);
      out += fmt::format(
          "<line x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{2:.1f}\" y2=\"{1}\" stroke=\"{3}\" "
          "stroke-width=\"3\"/><text x=\"{4:.1f}\" y=\"{5}\">{6}</text>\n",
          x, y, x + 20, colour(i), x + 26, y + 4, escape_markup(panel_.series[i].name));
    }
    return out;
  }

  const PlotPanel& panel_;
  double largest_x_ = 0, largest_y_ = 1e-9, smallest_y_ = 0;
};

}  // namespace

void check_can_draw(const std::filesystem::path& svg) {
  if (!svg.empty()) base::AtomicFile probe(svg);
}

std::string escape_markup(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '&')
      out += "&amp;";
    else
      out += c;
  }
  return out;
}

std::string draw_svg(const std::vector<PlotPanel>& panels) {
  double panel_height = kHeight;
  for (const PlotPanel& panel : panels)
    panel_height = std::max(panel_height, kHeight + legend_height(panel));
  const size_t columns = std::min(panels.size(), kPanelColumns);
  const size_t rows = (panels.size() + kPanelColumns - 1) / kPanelColumns;
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" "
      "viewBox=\"0 0 {0} {1}\">\n",
      kWidth * static_cast<double>(columns), panel_height * static_cast<double>(rows));
  out +=
      "<style>\n"
      "text { font: 12px sans-serif; fill: #222; paint-order: stroke; stroke: #fff; "
      "stroke-width: 4px; }\n"
      ".title { font-size: 14px; font-weight: bold; }\n"
      ".note { font-size: 11px; fill: #555; }\n"
      ".grid { stroke: #ddd; }\n"
      ".mark { stroke: #888; stroke-dasharray: 4 3; }\n"
      "</style>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n";
  for (size_t i = 0; i < panels.size(); ++i)
    out += Panel(panels[i]).draw(kWidth * static_cast<double>(i % kPanelColumns),
                                 panel_height * static_cast<double>(i / kPanelColumns));
  return out + "</svg>\n";
}

}  // namespace fathom::bench
