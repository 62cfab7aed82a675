// --seed, of whatever is drawn.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>

namespace fathom::cli {

// An integer below 2^64: the library would take any other for the nearest that is.
inline std::string seed_error(const std::string& text) {
  uint64_t seed = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (read.ec == std::errc() && read.ptr == text.data() + text.size()) return "";
  return text + " is no seed; expected an integer from 0 to 18446744073709551615";
}

template <typename Seed>
CLI::Option* add_seed_option(CLI::App& command, Seed& seed, const std::string& what) {
  return command.add_option("--seed", seed, what)->check(CLI::Validator(seed_error, "", "seed"));
}

}  // namespace fathom::cli
