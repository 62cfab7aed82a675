#include "bench/machine.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <vector>

#include "base/parallel.h"
#include "bench/timing.h"
#include "kernels/simd.h"

namespace fathom::bench {
namespace {

using kernels::F32x8;

constexpr int kChains = 12;  // enough to hide the latency of two multiply-add units
constexpr int64_t kRounds = 10'000'000;
constexpr int64_t kBufferFloats = 64 << 20;

// Tells the compiler nothing about the value, so that no two chains become one.
FATHOM_INLINE void hide(F32x8& value) {
#if defined(__AVX__)
  asm volatile("" : "+x"(value));
#else
  asm volatile("" : "+m"(value));
#endif
}

float multiply_add_rounds() {
  F32x8 sum[kChains];
  for (int i = 0; i < kChains; ++i) {
    sum[i] = kernels::broadcast(static_cast<float>(i));
    hide(sum[i]);
  }
  const F32x8 factor = kernels::broadcast(0.999f), term = kernels::broadcast(0.001f);
  for (int64_t round = 0; round < kRounds; ++round)
    for (F32x8& s : sum) s = s * factor + term;
  for (int i = 1; i < kChains; ++i) sum[0] += sum[i];
  return kernels::horizontal_sum(sum[0]);
}

float sum_of(const float* data, int64_t count) {
  F32x8 sum[4] = {};
  for (int64_t i = 0; i + 32 <= count; i += 32)
    for (int j = 0; j < 4; ++j) sum[j] += kernels::load(data + i + 8 * j);
  return kernels::horizontal_sum(sum[0] + sum[1] + sum[2] + sum[3]);
}

}  // namespace

MachinePeaks measure_machine() {
  const int64_t threads = base::num_threads();
  std::atomic<float> sink = 0;
  // The best run: a peak is what the machine can do, not what it did on average.
  const double compute_s = best_seconds({}, [&](int) {
    base::parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sink = multiply_add_rounds();
    });
  });
  const std::vector<float> buffer(kBufferFloats, 1.0f);
  const double read_s = best_seconds({}, [&](int) {
    base::parallel_for(kBufferFloats, kBufferFloats / threads, [&](int64_t begin, int64_t end) {
      sink = sum_of(buffer.data() + begin, end - begin);
    });
  });
  return {static_cast<double>(threads * kRounds * kChains * 16) / compute_s * 1e-9,
          static_cast<double>(kBufferFloats * sizeof(float)) / read_s * 1e-9};
}

int64_t resident_bytes() {
  long pages = 0, resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file && std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
  if (file) std::fclose(file);
  return resident * ::sysconf(_SC_PAGESIZE);
}

}  // namespace fathom::bench
