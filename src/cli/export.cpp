#include <memory>

#include "cli/commands.h"
#include "cli/model_folder.h"
#include "model/gguf_export.h"

namespace fathom::cli {

void add_export_command(CLI::App& app) {
  auto options = std::make_shared<model::GgufExportOptions>();
  options->model = bundled_model();
  CLI::App* command = app.add_subcommand("export", "Write a model as one GGUF file, for llama.cpp");
  command->add_option("--model", options->model, "Model folder")->capture_default_str();
  command->add_option("--gguf", options->out, "Where to write FILE.gguf")->required();
  command->add_option("--type", options->type, "Of the matrices; vectors and routers stay f32")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
  command->callback([options] { model::export_gguf(*options); });
}

}  // namespace fathom::cli
