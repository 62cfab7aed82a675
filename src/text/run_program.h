// Runs another program to its end: the package clients that fetch corpora.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace fathom::text {

// Runs command[0] (found in PATH) in `folder`, without a shell, and returns its standard output.
// Throws Error with its last line of standard error if it can't be started or doesn't exit with 0.
std::string run_program(const std::vector<std::string>& command,
                        const std::filesystem::path& folder);

}  // namespace fathom::text
