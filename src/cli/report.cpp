#include <fmt/format.h>

#include <memory>

#include "bench/training_report.h"
#include "cli/commands.h"

namespace fathom::cli {

void add_report_command(CLI::App& app) {
  auto options = std::make_shared<bench::TrainingReportOptions>();
  CLI::App* command =
      app.add_subcommand("report", "Draw the curves of training runs into one HTML file");
  command->add_option("runs", options->runs, "Folders that pretrain --run wrote")->required();
  command->add_option("--out", options->out, "Where to write FILE.html")->capture_default_str();
  command->callback([options] {
    bench::write_training_report(*options);
    fmt::print("wrote {}\n", options->out.string());
  });
}

}  // namespace fathom::cli
