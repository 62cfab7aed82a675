// A line on standard error for whatever takes over two seconds: rewritten in place on a terminal,
// printed as plain lines (at most one every ten seconds) elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace fathom::base {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// "3.2 s", "4 min 05 s", "1 h 12 min".
std::string format_seconds(double seconds);
// "512 B", "1.5 MiB".
std::string format_bytes(uint64_t num_bytes);

class Progress {
 public:
  // `unit` is what is counted: "tokens", "MB". A total of 0 means unknown. `already_done` was done
  // by an earlier process and does not count for the rate.
  Progress(std::string title, double total, std::string unit, double already_done = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Shows done, rate and time left, and `note` after them. Cheap enough to call in a loop.
  void update(double done, std::string_view note = {});
  // Ends the line. Says nothing if the work took under two seconds.
  void finish();
  void set_total(double total) { total_ = total; }

 private:
  void print(double done, std::string_view note);

  std::string title_;
  double total_;
  std::string unit_;
  double already_done_;
  Stopwatch watch_;
  bool is_terminal_;
  bool is_finished_ = false;
  bool has_printed_ = false;
  double last_print_seconds_ = 0;
  double last_done_ = 0;
  std::string last_note_;
};

}  // namespace fathom::base
