// SIGTERM and SIGINT as a wish: training ends after the step under way, saved.
#pragma once

#include <csignal>

namespace fathom::pretrain {

// Catches both while it lives, but one that was ignored before; one object at a time. A second
// signal ends the process at once, if it comes a second or two later: a terminal and a launcher
// send one each. SIGPIPE is ignored meanwhile: Ctrl-C also ends who reads this process's output.
class StopSignals {
 public:
  // is_told: the first signal is answered on standard error.
  explicit StopSignals(bool is_told);
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  int received() const;  // 0: none

 private:
  struct sigaction terminate_before_, interrupt_before_, pipe_before_;
};

// Ends the process as the signal would have.
[[noreturn]] void end_by(int signal);

}  // namespace fathom::pretrain
