#include "bench/serve.h"

#include <memory>

#include "base/check.h"
#include "cli/bench_commands.h"
#include "cli/figures.h"
#include "cli/real_range.h"

namespace fathom::cli {

void add_bench_serve_command(CLI::App& bench) {
  auto options = std::make_shared<bench::ServeOptions>();
  auto is_json = std::make_shared<bool>(false);
  CLI::App* command =
      bench.add_subcommand("serve", "Load a server on this machine and time its answers");
  command->add_option("--url", options->url, "The server; loopback addresses only")
      ->capture_default_str();
  command->add_option("--requests", options->num_requests, "Requests in all")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--concurrency", options->concurrency, "Requests under way at most")
      ->check(CLI::Range(1, 512))
      ->capture_default_str();
  command
      ->add_option("--rate", options->requests_per_second,
                   "Requests a second at random times; 0: a new one when one ends")
      ->check(real_range(0, 10000))
      ->capture_default_str();
  command->add_option("--prompt-tokens", options->prompt_tokens, "Tokens of each prompt")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--max-tokens", options->max_tokens, "Most tokens of each answer")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_flag("--json", *is_json, "Print one JSON object instead of a table");
  command->callback([options, is_json] {
    const Json figures = bench::measure_serve(*options);
    print_figures(figures, *is_json);
    if (figures["answered"] == 0)
      fail("no request was answered: {}", figures["failures"].begin().key());
  });
}

}  // namespace fathom::cli
