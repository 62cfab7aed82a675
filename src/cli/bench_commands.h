// The subcommands of `fathom bench`, each in its own file.
#pragma once

#include <CLI/CLI.hpp>

namespace fathom::cli {

void add_bench_cost_command(CLI::App& bench);
void add_bench_decoupling_command(CLI::App& bench);
void add_bench_dsa_command(CLI::App& bench);
void add_bench_layer_command(CLI::App& bench);
void add_bench_library_linear_command(CLI::App& bench);
void add_bench_linear_command(CLI::App& bench);
void add_bench_serve_command(CLI::App& bench);
void add_bench_streams_command(CLI::App& bench);
void add_bench_train_command(CLI::App& bench);
void add_bench_train_steps_command(CLI::App& bench);

}  // namespace fathom::cli
