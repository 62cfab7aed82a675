// --cache: how a KV cache stores its rows.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "kernels/paged_rows.h"

namespace fathom::cli {

// Sets `format`, which must outlive the parsing; its value is the default.
inline void add_cache_option(CLI::App& command, kernels::RowFormat& format) {
  std::vector<std::string> names;
  std::string initial;
  for (const auto& [name, known] : kernels::kRowFormats) {
    names.emplace_back(name);
    if (known == format) initial = name;
  }
  const auto set = [&format](const std::string& chosen) {
    for (const auto& [name, known] : kernels::kRowFormats)
      if (name == chosen) format = known;
  };
  command
      .add_option_function<std::string>(
          "--cache", set,
          "How KV caches store their rows: f32, bf16, or fp8 (656 + 132 bytes a token and layer "
          "at V3.2's shape)")
      ->check(CLI::IsMember(names))
      ->default_str(initial);
}

}  // namespace fathom::cli
