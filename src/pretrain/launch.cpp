#include "pretrain/launch.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <sstream>
#include <string_view>
#include <thread>

#include "base/check.h"
#include "base/file.h"
#include "base/free_port.h"

namespace fathom::pretrain {
namespace {

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

std::vector<std::string> environment_of(int rank, int size, uint16_t port) {
  const std::vector<std::string> ours = {
      fmt::format("RANK={}", rank),         fmt::format("LOCAL_RANK={}", rank),
      fmt::format("WORLD_SIZE={}", size),   fmt::format("LOCAL_WORLD_SIZE={}", size),
      std::string("MASTER_ADDR=127.0.0.1"), fmt::format("MASTER_PORT={}", port)};
  std::vector<std::string> all = ours;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    bool is_ours = false;
    for (const std::string& own : ours)
      is_ours |= text.starts_with(std::string_view(own).substr(0, own.find('=') + 1));
    if (!is_ours) all.emplace_back(text);
  }
  return all;
}

// The signals that the launcher waits for; kept blocked meanwhile.
sigset_t watched_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGCHLD, SIGTERM, SIGINT}) sigaddset(&signals, signal);
  return signals;
}

pid_t start_rank(int rank, int size, uint16_t port, std::vector<std::string> command) {
  std::vector<std::string> environment = environment_of(rank, size, port);
  const auto argv = pointers(command), envp = pointers(environment);
  const pid_t launcher = getpid();
  const pid_t pid = fork();
  if (pid < 0) fail("rank {} of {} did not start ({})", rank, size, std::strerror(errno));
  if (pid > 0) return pid;
  // A launcher that is killed takes its ranks along.
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  const sigset_t signals = watched_signals();
  sigprocmask(SIG_UNBLOCK, &signals, nullptr);
  if (getppid() == launcher) execve(command[0].c_str(), argv.data(), envp.data());
  _exit(127);
}

struct RunningRanks {
  std::vector<pid_t> pids;  // 0: has ended
  int exit_code = 0;        // of the first that failed
  time_t failed_at = 0;

  bool any() const {
    for (pid_t pid : pids)
      if (pid != 0) return true;
    return false;
  }
  void send(int signal) const {
    for (pid_t pid : pids)
      if (pid != 0) kill(pid, signal);
  }
  void collect() {
    for (size_t rank = 0; rank < pids.size(); ++rank) {
      int status = 0;
      if (pids[rank] == 0 || waitpid(pids[rank], &status, WNOHANG) != pids[rank]) continue;
      pids[rank] = 0;
      const int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
      if (code == 0) continue;
      const std::string how = WIFSIGNALED(status)
                                  ? fmt::format("signal {}", strsignal(WTERMSIG(status)))
                                  : fmt::format("exit code {}", code);
      fmt::print(stderr, "fathom: rank {} of {} ended by {}\n", rank, pids.size(), how);
      if (exit_code != 0) continue;
      exit_code = code;
      failed_at = time(nullptr);
    }
  }
  void end_the_rest() const {
    const time_t waited = time(nullptr) - failed_at;
    if (exit_code == 0 || waited < kGraceSeconds) return;
    send(waited < 2 * kGraceSeconds ? SIGTERM : SIGKILL);
  }
};

}  // namespace

int most_ranks() { return std::max(8, 4 * static_cast<int>(std::thread::hardware_concurrency())); }

int launch_ranks(int size, const std::vector<std::string>& command) {
  if (size > most_ranks())
    fail("--nproc is {}; this machine has {} cores, enough for {} ranks at most: start fewer", size,
         std::thread::hardware_concurrency(), most_ranks());
  const sigset_t signals = watched_signals();
  sigset_t before;
  sigprocmask(SIG_BLOCK, &signals, &before);
  const uint16_t port = base::free_port();
  RunningRanks ranks;
  for (int rank = 0; rank < size; ++rank)
    ranks.pids.push_back(start_rank(rank, size, port, command));
  while (ranks.any()) {
    const timespec second{1, 0};
    const int signal = sigtimedwait(&signals, nullptr, &second);
    if (signal == SIGTERM || signal == SIGINT) ranks.send(signal);
    ranks.collect();
    ranks.end_the_rest();
  }
  sigprocmask(SIG_SETMASK, &before, nullptr);
  return ranks.exit_code;
}

std::vector<std::string> own_command_line() {
  std::vector<std::string> command;
  std::istringstream words(base::read_file("/proc/self/cmdline"));
  for (std::string word; std::getline(words, word, '\0');) command.push_back(word);
  command.at(0) = std::filesystem::read_symlink("/proc/self/exe");
  return command;
}

}  // namespace fathom::pretrain
