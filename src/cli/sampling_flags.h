// Sampling flags of the commands that generate.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <random>

#include "cli/seed_option.h"
#include "engine/sampler.h"

namespace fathom::cli {

// What was not given is the model's own choice (generation_config.json).
struct SamplingFlags {
  std::optional<double> temperature, top_p, min_p;
  std::optional<int> top_k;
  std::optional<uint64_t> seed;

  void add_to(CLI::App& command) {
    command.add_option("--temperature", temperature, "0 is greedy; up to 2 (default: the model's)");
    command.add_option("--top-p", top_p,
                       "Mass of the tokens to choose from (default: the model's)");
    command.add_option("--top-k", top_k,
                       "Number of tokens to choose from; 0 is all (default: the model's)");
    command.add_option("--min-p", min_p,
                       "Least share of the best token's probability (default: the model's)");
    add_seed_option(command, seed, "Same seed, same text (default: random)");
  }

  engine::SamplingOptions over(engine::SamplingOptions sampling) const {
    sampling.temperature = temperature.value_or(sampling.temperature);
    sampling.top_p = top_p.value_or(sampling.top_p);
    sampling.top_k = top_k.value_or(sampling.top_k);
    sampling.min_p = min_p.value_or(sampling.min_p);
    sampling.seed = seed ? *seed : std::random_device{}();
    engine::validate(sampling);
    return sampling;
  }
};

}  // namespace fathom::cli
