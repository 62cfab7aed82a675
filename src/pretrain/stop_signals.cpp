#include "pretrain/stop_signals.h"

#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <string_view>

namespace fathom::pretrain {
namespace {

// What a signal's handler can reach.
volatile std::sig_atomic_t received_signal = 0, is_answered = 0;
volatile std::time_t received_at = 0;

void receive(int signal) {
  if (received_signal != 0) {
    if (std::time(nullptr) - received_at > 1) {
      std::signal(signal, SIG_DFL);
      std::raise(signal);  // once this handler has returned
    }
    return;
  }
  received_signal = signal;
  received_at = std::time(nullptr);
  if (is_answered == 0) return;
  constexpr std::string_view kAnswer =
      "\nending after this step, saved; the same signal again ends it at once\n";
  (void)!::write(STDERR_FILENO, kAnswer.data(), kAnswer.size());
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
}

StopSignals::~StopSignals() {
  ::sigaction(SIGTERM, &terminate_before_, nullptr);
  ::sigaction(SIGINT, &interrupt_before_, nullptr);
}

int StopSignals::received() const { return received_signal; }

void end_by(int signal) {
  std::signal(signal, SIG_DFL);
  std::raise(signal);
  std::abort();
}

}  // namespace fathom::pretrain
