#include "base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace fathom::base {

std::string format_seconds(double seconds) {
  if (seconds < 60) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<int64_t>(seconds);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

std::string format_bytes(uint64_t num_bytes) {
  if (num_bytes < 1024) return fmt::format("{} B", num_bytes);
  const char* const units[] = {"KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(num_bytes) / 1024;
  int unit = 0;
  while (value >= 1024 && unit < 3) value /= 1024, ++unit;
  return fmt::format("{:.1f} {}", value, units[unit]);
}

Progress::Progress(std::string title, double total, std::string unit, double already_done)
    : title_(std::move(title)),
      total_(total),
      unit_(std::move(unit)),
      already_done_(already_done),
      is_terminal_(::isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() { finish(); }

void Progress::update(double done, std::string_view note) {
  last_done_ = done;
  last_note_ = note;
  const double now = watch_.seconds();
  const double interval = is_terminal_ ? 0.2 : 10.0;
  if (now < 2.0 || (has_printed_ && now - last_print_seconds_ < interval)) return;
  last_print_seconds_ = now;
  print(done, note);
}

void Progress::finish() {
  if (is_finished_) return;
  is_finished_ = true;
  if (!has_printed_) return;
  print(last_done_, last_note_);
  if (is_terminal_) std::fputc('\n', stderr);
}

void Progress::print(double done, std::string_view note) {
  has_printed_ = true;
  const double elapsed = watch_.seconds();
  const double rate = elapsed > 0 ? (done - already_done_) / elapsed : 0;
  std::string line = fmt::format("{}: {:.6g}", title_, done);
  if (total_ > 0)
    line += fmt::format(" of {:.6g} {} ({:.0f}%)", total_, unit_, 100 * done / total_);
  else
    line += " " + unit_;
  line += fmt::format(", {:.4g} {}/s", rate, unit_);
  if (is_finished_)
    line += ", took " + format_seconds(elapsed);
  else if (total_ > 0 && rate > 0)
    line += ", " + format_seconds((total_ - done) / rate) + " left";
  if (!note.empty()) line += fmt::format(", {}", note);
  if (is_terminal_)
    fmt::print(stderr, "\r{}\x1b[K", line);
  else
    fmt::print(stderr, "{}\n", line);
  std::fflush(stderr);
}

}  // namespace fathom::base
