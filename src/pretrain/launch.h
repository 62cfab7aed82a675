// `--nproc N`: this program as N ranks on this machine.
#pragma once

#include <string>
#include <vector>

namespace fathom::pretrain {

inline constexpr int kGraceSeconds = 5;

// Four a core, and 8 at least: more only take each other's memory and time.
int most_ranks();

// Starts `size` copies of `command` (a program's path and its arguments) with torchrun's variables
// set, and waits for them. SIGTERM and SIGINT are passed on. When one fails, the others get
// kGraceSeconds to say what they saw, then SIGTERM, then SIGKILL. Returns 0, or the exit code of
// the rank that failed first (128 + its signal). Fails where they are more than most_ranks(). Call
// before any thread is started.
int launch_ranks(int size, const std::vector<std::string>& command);

// How this process was started, its program as an absolute path.
std::vector<std::string> own_command_line();

}  // namespace fathom::pretrain
