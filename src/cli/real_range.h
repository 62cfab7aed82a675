// A flag's number between two others. The library's own range lets NaN pass.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <string>

namespace fathom::cli {

inline CLI::Validator real_range(double least, double greatest) {
  const std::string range = fmt::format("{} to {}", least, greatest);
  const auto error = [=](const std::string& text) {
    double value = 0;
    if (CLI::detail::lexical_cast(text, value) && value >= least && value <= greatest)
      return std::string();
    return fmt::format("Value {} not in range {}", text, range);
  };
  return CLI::Validator(error, "FLOAT in " + range, "range");
}

}  // namespace fathom::cli
