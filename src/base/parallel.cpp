#include "base/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/check.h"

namespace fathom::base {
namespace {

int num_processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::atomic<int> configured_threads{num_processors()};

// This thread runs a range already: what it calls in turn is run serially.
thread_local bool is_inside = false;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

struct Loop {
  internal::RangeBody body;
  void* context;
  int64_t count, num_ranges;
  std::atomic<int> places;  // for helping threads
  std::atomic<int64_t> next{0};
  std::exception_ptr error = {};
  std::mutex error_mutex = {};

  void run_ranges() {
    is_inside = true;
    for (int64_t i; (i = next.fetch_add(1)) < num_ranges;) {
      try {
        body(context, count * i / num_ranges, count * (i + 1) / num_ranges);
      } catch (...) {
        const std::scoped_lock lock(error_mutex);
        if (!error) error = std::current_exception();
      }
    }
    is_inside = false;
  }
};

// Threads that help with one loop at a time. They look for the next one for a moment, since loops
// come in rows, and then sleep. The loop's own thread takes whatever no other has begun, and waits
// only for threads that did begin: one that the system does not let run costs nothing.
class Helpers {
 public:
  // False where another loop has them.
  bool run(Loop& loop) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return false;
    while (std::ssize(threads_) < loop.places) threads_.emplace_back([this] { help(); });
    loop_ = &loop;
    announce();
    loop.run_ranges();
    // Sequentially consistent: a thread that is not counted yet will find no loop.
    loop_ = nullptr;
    for (int tries = 0; num_helping_ > 0; ++tries)
      tries < 10'000 ? pause() : std::this_thread::yield();
    return true;
  }

 private:
  // Helpers look for the next loop for some 200 microseconds: longer than a small model works
  // between two loops worth sharing, such as its layers' selections of keys. Waking a sleeping
  // thread takes longer than its share of one. After the first 20 they let others run who have
  // work.
  static constexpr int kLooks = 1'000, kYieldingLooks = 400;

  void announce() {
    ++announcements_;
    announcements_.notify_all();
  }

  void help() {
    uint32_t seen = 0;
    while (true) {
      for (int i = 0; i < kLooks && announcements_ == seen; ++i) pause();
      for (int i = 0; i < kYieldingLooks && announcements_ == seen; ++i) std::this_thread::yield();
      announcements_.wait(seen);
      seen = announcements_;
      ++num_helping_;
      Loop* const loop = loop_;
      if (loop && loop->places.fetch_sub(1) > 0) loop->run_ranges();
      --num_helping_;
    }
  }

  std::mutex mutex_;  // held for a loop
  std::vector<std::thread> threads_;
  std::atomic<uint32_t> announcements_{0};
  std::atomic<Loop*> loop_{nullptr};
  std::atomic<int> num_helping_{0};
};

}  // namespace

void set_num_threads(int num_threads) {
  CHECK_GE(num_threads, 1);
  configured_threads = num_threads;
}

int num_threads() { return configured_threads; }

namespace internal {

void parallel_ranges(int64_t count, int64_t grain, RangeBody body, void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t most_ranges = (count + grain - 1) / grain;
  if (most_ranges == 1 || num_threads() == 1 || is_inside) {
    body(context, 0, count);
    return;
  }
  // More ranges than threads even out unequal items (causal attention, experts of unequal load).
  const int64_t num_ranges = std::min<int64_t>(most_ranges, 8 * num_threads());
  const int places = static_cast<int>(std::min<int64_t>(num_threads(), num_ranges)) - 1;
  Loop loop{body, context, count, num_ranges, places};
  // One set of threads, as there is one set of processors; never destroyed, since other threads may
  // still run loops when the process ends.
  static Helpers& helpers = *new Helpers;
  if (!helpers.run(loop)) loop.run_ranges();
  if (loop.error) std::rethrow_exception(loop.error);
}

}  // namespace internal
}  // namespace fathom::base
