#include "pretrain/stop_signals.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <string_view>

namespace fathom::pretrain {
namespace {

// What a signal's handler can reach.
std::atomic<int> received_signal{0};
std::atomic<std::time_t> received_at{0};
std::atomic<bool> is_answered{false};
static_assert(std::atomic<std::time_t>::is_always_lock_free);

// Two at once, on two threads, may both find none before them: the time is there before the signal.
void receive(int signal) {
  const int error = errno;
  const std::time_t now = std::time(nullptr);
  if (received_signal != 0) {
    if (now - received_at > 1) {
      std::signal(signal, SIG_DFL);
      std::raise(signal);  // once this handler has returned
    }
    return;
  }
  received_at = now;
  received_signal = signal;
  if (!is_answered) return;
  constexpr std::string_view kAnswer =
      "\nending after this step, saved; the same signal again ends it at once\n";
  (void)!::write(STDERR_FILENO, kAnswer.data(), kAnswer.size());
  errno = error;
}

struct sigaction catch_signal(int signal) {
  struct sigaction before = {}, ours = {};
  ::sigaction(signal, nullptr, &before);
  if (before.sa_handler == SIG_IGN) return before;
  ours.sa_handler = receive;
  ours.sa_flags = SA_RESTART;
  ::sigaction(signal, &ours, nullptr);
  return before;
}

}  // namespace

StopSignals::StopSignals(bool is_told) {
  received_signal = 0;
  is_answered = is_told;
  terminate_before_ = catch_signal(SIGTERM);
  interrupt_before_ = catch_signal(SIGINT);
  struct sigaction ignored = {};
  ignored.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &ignored, &pipe_before_);
}

StopSignals::~StopSignals() {
  ::sigaction(SIGTERM, &terminate_before_, nullptr);
  ::sigaction(SIGINT, &interrupt_before_, nullptr);
  ::sigaction(SIGPIPE, &pipe_before_, nullptr);
}

int StopSignals::received() const { return received_signal; }

void end_by(int signal) {
  std::signal(signal, SIG_DFL);
  std::raise(signal);
  std::abort();
}

}  // namespace fathom::pretrain
