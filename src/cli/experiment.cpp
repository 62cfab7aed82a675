#include <fmt/format.h>

#include <memory>

#include "bench/experiment_report.h"
#include "cli/commands.h"

namespace fathom::cli {

void add_experiment_command(CLI::App& app) {
  auto options = std::make_shared<bench::ExperimentReportOptions>();
  auto is_json = std::make_shared<bool>(false);
  CLI::App* command =
      app.add_subcommand("experiment", "Judge an experiment's runs by what it declared");
  command->add_option("file", options->experiment, "recipes/experiments/NAME.json")->required();
  command->add_option("--runs", options->runs, "Folder with seed-N/ARM, each a run of pretrain")
      ->required();
  command->add_option("--out", options->out, "Folder for NAME.json, NAME.md and NAME.svg")
      ->required();
  command->add_flag("--json", *is_json, "Print the result as JSON");
  command->callback([options, is_json] {
    const Json result = bench::report_experiment(*options);
    if (*is_json) {
      fmt::print("{}\n", result.dump(2));
      return;
    }
    for (const Json& criterion : result["pass"])
      fmt::print("{:8} {}\n", criterion["verdict"].get<std::string>(),
                 criterion["what"].get<std::string>());
    fmt::print("wrote {}\n", options->out.string());
  });
}

}  // namespace fathom::cli
