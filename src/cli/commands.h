// One function a command, each in its own file: flags into an options struct, one call.
#pragma once

#include <CLI/CLI.hpp>

namespace fathom::cli {

void add_bench_command(CLI::App& app);
void add_chat_command(CLI::App& app);
void add_corpus_command(CLI::App& app);
void add_encode_chat_command(CLI::App& app);
void add_convert_to_dsa_command(CLI::App& app);
void add_experiment_command(CLI::App& app);
void add_export_command(CLI::App& app);
void add_forward_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_pretrain_command(CLI::App& app);
void add_report_command(CLI::App& app);
void add_serve_command(CLI::App& app);
void add_tokenize_command(CLI::App& app);
void add_train_tokenizer_command(CLI::App& app);

}  // namespace fathom::cli
