#include "cli/figures.h"

#include <fmt/format.h>

namespace fathom::cli {
namespace {

// Nested objects as dotted names, one figure a line.
void print_table(const Json& figures, const std::string& prefix = "") {
  for (const auto& [name, value] : figures.items()) {
    if (value.is_structured())
      print_table(value, prefix + name + ".");
    else if (value.is_number_float())
      fmt::print("{:40} {:.4g}\n", prefix + name, value.get<double>());
    else
      fmt::print("{:40} {}\n", prefix + name,
                 value.is_string() ? value.get<std::string>() : value.dump());
  }
}

}  // namespace

void print_figures(const Json& figures, bool is_json) {
  if (is_json)
    fmt::print("{}\n", figures.dump(2));
  else
    print_table(figures);
}

}  // namespace fathom::cli
