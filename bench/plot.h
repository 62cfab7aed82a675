// A line chart as SVG: what a benchmark draws beside its JSON.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace fathom::bench {

struct PlotSeries {
  std::string name;
  std::vector<std::pair<double, double>> points;  // (x, y), x ascending
  int colour = -1;  // 0 to 7, to keep one over several panels; otherwise by its place in the panel
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
  bool is_from_zero = true;  // the y axis; otherwise from the smallest value
};

// Panels on white, two in a row, each with its own axes and, under them, its legend; x begins at
// zero.
std::string draw_svg(const std::vector<PlotPanel>& panels);

// Where `svg` cannot be written, fails before anything is measured for it. Empty: nothing to draw.
void check_can_draw(const std::filesystem::path& svg);

// Text as SVG and HTML take it.
std::string escape_markup(const std::string& text);

}  // namespace fathom::bench
