#include "server/server.h"

#include <memory>

#include "cli/cache_option.h"
#include "cli/commands.h"
#include "cli/model_folder.h"
#include "cli/threads_option.h"

namespace fathom::cli {

void add_serve_command(CLI::App& app) {
  auto options = std::make_shared<server::ServerOptions>();
  CLI::App* command =
      app.add_subcommand("serve", "Serve a model over HTTP (OpenAI's API) with a page to try it");
  options->model = bundled_model();
  command->add_option("--model", options->model, "Model folder")->capture_default_str();
  command->add_option("--host", options->host, "Address to listen on")->capture_default_str();
  command->add_option("--port", options->port, "Port; 0 picks a free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command
      ->add_option("--max-running", options->max_running_requests,
                   "Requests generated at the same time; others wait")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command
      ->add_option("--max-waiting", options->max_waiting_requests,
                   "Requests that wait; others are refused with 429")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  add_cache_option(*command, options->cache_format);
  command
      ->add_option("--cache-mib", options->cache_mib,
                   "Memory of all KV caches; requests that find no room wait")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str();
  command->add_flag("--speculate", options->speculate,
                    "Draft tokens with the MTP layer where it pays; the answers stay the same");
  command->add_flag("--strict-reasoning", options->is_strict_reasoning,
                    "Refuse tool turns without reasoning_content, as DeepSeek does");
  command->add_flag("--verify", options->verify,
                    "First check every weight, and SHA256SUMS where the folder has it");
  add_threads_option(*command, options->num_threads);
  command->callback([options] { server::serve(*options); });
}

}  // namespace fathom::cli
