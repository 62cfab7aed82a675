#include <memory>

#include "cli/commands.h"
#include "model/forward_file.h"

namespace fathom::cli {

void add_forward_command(CLI::App& app) {
  auto options = std::make_shared<model::ForwardFileOptions>();
  CLI::App* command =
      app.add_subcommand("forward", "Run tokens through a model and write the logits");
  command->add_option("--model", options->model, "Model folder")->required();
  command
      ->add_option("--tokens", options->tokens,
                   "FILE.safetensors or FILE.safetensors:KEY, integers [B, T]; the key may be left "
                   "out if there is one tensor")
      ->required();
  command->add_option("--mode", options->mode, "Numerics: as trained, or FP8 as served")
      ->check(CLI::IsMember({"plain", "deploy"}))
      ->capture_default_str();
  command
      ->add_option(
          "--form", options->form,
          "Attention: masked (mha), gathered (mqa), or by position what is cheaper: mha for "
          "the beginning of the prefill, mqa beyond and for single tokens")
      ->check(CLI::IsMember({"auto", "mha", "mqa"}))
      ->capture_default_str();
  command->add_option("--prefill", options->prefill,
                      "Tokens of the prompt; later positions go one at a time through the cache");
  command->add_flag("--dump-layers", options->dump_layers,
                    "Also write layerN.hidden and layerN.topk");
  command->add_option("--out", options->out, "Where to write FILE.safetensors")->required();
  command->callback([options] { model::run_forward_file(*options); });
}

}  // namespace fathom::cli
