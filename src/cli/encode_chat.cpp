#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>

#include "base/check.h"
#include "cli/commands.h"
#include "text/chat_format.h"
#include "text/python_json.h"

namespace fathom::cli {
namespace {

void encode_chat() {
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  const Json request = text::parse_json_exactly(input, "standard input");
  if (!request.is_object() || !request.contains("messages"))
    fail("standard input: expected an object with \"messages\" and perhaps \"options\"");
  const Json options = request.contains("options") ? request["options"] : Json::object();
  const std::string prompt =
      text::encode_messages(request["messages"], text::parse_chat_options(options));
  std::fwrite(prompt.data(), 1, prompt.size(), stdout);
}

}  // namespace

void add_encode_chat_command(CLI::App& app) {
  app.add_subcommand("encode-chat",
                     "Print the prompt for {\"messages\": [...], \"options\": {...}} from standard "
                     "input")
      ->callback(encode_chat);
}

}  // namespace fathom::cli
