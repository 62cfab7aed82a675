// --cache: how a KV cache stores its rows.
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <string>

#include "kernels/paged_rows.h"

namespace fathom::cli {

inline void add_cache_option(CLI::App& command, kernels::RowFormat& format) {
  std::map<std::string, kernels::RowFormat> formats;
  std::string initial;
  for (const auto& [name, known] : kernels::kRowFormats) {
    formats[std::string(name)] = known;
    if (known == format) initial = name;
  }
  command
      .add_option("--cache", format,
                  "How the KV cache stores its rows: f32, bf16, or fp8 (656 + 132 bytes a token "
                  "and layer at V3.2's shape)")
      ->transform(CLI::CheckedTransformer(formats))
      ->default_str(initial);
}

}  // namespace fathom::cli
