#include "text/run_program.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>

#include "base/check.h"

namespace fathom::text {

namespace {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

std::string read_all(std::FILE* file) {
  std::rewind(file);
  std::string text;
  char buffer[4096];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, file)) > 0;) text.append(buffer, n);
  return text;
}

std::string last_line(std::string text) {
  while (text.ends_with('\n')) text.pop_back();
  return text.substr(text.rfind('\n') + 1);
}

}  // namespace

std::string run_program(const std::vector<std::string>& command,
                        const std::filesystem::path& folder) {
  CHECK(!command.empty());
  const File output(std::tmpfile()), errors(std::tmpfile());
  if (!output || !errors) fail("can't create a temporary file for {}'s output", command[0]);
  std::vector<char*> arguments;
  for (const std::string& argument : command) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  const pid_t child = fork();
  if (child < 0) fail("can't start {}: fork failed", command[0]);
  if (child == 0) {
    // Only async-signal-safe calls here: other threads may have held locks.
    const int nothing = open("/dev/null", O_RDONLY);
    if (chdir(folder.c_str()) == 0 && dup2(nothing, 0) >= 0 && dup2(fileno(output.get()), 1) >= 0 &&
        dup2(fileno(errors.get()), 2) >= 0) {
      execvp(arguments[0], arguments.data());
    }
    _exit(127);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    const std::string reason = last_line(read_all(errors.get()));
    const bool is_missing = WIFEXITED(status) && WEXITSTATUS(status) == 127 && reason.empty();
    fail("{} {}: {}", command[0], command.back(),
         is_missing       ? "the program is not installed"
         : reason.empty() ? "failed"
                          : reason);
  }
  return read_all(output.get());
}

}  // namespace fathom::text
