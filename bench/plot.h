// A line chart as SVG: what a benchmark draws beside its JSON.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace fathom::bench {

struct PlotSeries {
  std::string name;
  std::vector<std::pair<double, double>> points;  // (x, y), x ascending
};

// Something to see at a place on the x axis: a dashed line with its label.
struct PlotMark {
  double x;
  std::string label;
};

struct PlotPanel {
  std::string title, x_label, y_label;
  std::vector<PlotSeries> series;  // at most eight
  std::vector<PlotMark> marks;
};

// Panels side by side on white, each with its own axes from zero on and its legend.
std::string draw_svg(const std::vector<PlotPanel>& panels);

}  // namespace fathom::bench
