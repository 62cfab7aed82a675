#include "bench/machine.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <vector>

#include "base/parallel.h"
#include "bench/timing.h"
#include "kernels/amx_tile.h"
#include "kernels/bf16_dot.h"
#include "kernels/simd.h"

namespace fathom::bench {
namespace {

using kernels::F32x8;

constexpr int kChains = 12;  // enough to hide the latency of two multiply-add units
// Runs of a millisecond or two: on a shared machine some of many fall between interruptions.
constexpr int64_t kRounds = 1'000'000;
constexpr Repeats kManyRuns{.fewest = 20, .most = 200, .seconds = 0.2};
constexpr int64_t kBufferFloats = 64 << 20;
constexpr int kBufferParts = 8;

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

#if FATHOM_HAS_BF16_KERNELS

#define INT8_KERNEL __attribute__((target("arch=x86-64-v4,avx512vnni")))

BF16_KERNEL float bf16_rounds() {
  __m512 sum[kChains];
  for (__m512& s : sum) {
    s = _mm512_setzero_ps();
    asm volatile("" : "+v"(s));
  }
  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  for (int64_t round = 0; round < kRounds; ++round)
    for (__m512& s : sum) s = kernels::dot_pairs(s, ones, ones);
  for (int i = 1; i < kChains; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  return _mm512_reduce_add_ps(sum[0]);
}

INT8_KERNEL float int8_rounds() {
  __m512i sum[kChains];
  for (__m512i& s : sum) {
    s = _mm512_setzero_si512();
    asm volatile("" : "+v"(s));
  }
  const __m512i ones = _mm512_set1_epi8(1);
  for (int64_t round = 0; round < kRounds; ++round)
    for (__m512i& s : sum) s = _mm512_dpbusd_epi32(s, ones, ones);
  for (int i = 1; i < kChains; ++i) sum[0] = _mm512_add_epi32(sum[0], sum[i]);
  return static_cast<float>(_mm512_reduce_add_epi32(sum[0]));
}

bool has_int8_dot() { return kernels::has_bf16_dot() && __builtin_cpu_supports("avx512vnni"); }

#else

float bf16_rounds() { return 0; }
float int8_rounds() { return 0; }
bool has_int8_dot() { return false; }

#endif

#if FATHOM_HAS_AMX_KERNELS

constexpr int64_t kTileProducts = kRounds * kChains / 64;  // a tile takes sixteen cycles

float tile_rounds() {
  const kernels::TileShape shape(kernels::kAmxCols);
  const std::vector<uint16_t> ones(kernels::kAmxRows * kernels::kAmxK, 0x3f80);
  kernels::tile_load<4>(ones.data(), 64);
  kernels::tile_load<5>(ones.data(), 64);
  kernels::tile_load<6>(ones.data(), 64);
  kernels::tile_load<7>(ones.data(), 64);
  kernels::clear_sums();
  for (int64_t i = 0; i < kTileProducts; i += 4) {
    kernels::tile_multiply<0, 4, 6>();
    kernels::tile_multiply<1, 4, 7>();
    kernels::tile_multiply<2, 5, 6>();
    kernels::tile_multiply<3, 5, 7>();
  }
  alignas(64) float sum[kernels::kAmxRows * kernels::kAmxCols];
  kernels::tile_store<0>(sum, 64);
  return sum[0];
}

#else

constexpr int64_t kTileProducts = 1;
float tile_rounds() { return 0; }

#endif

// 1e9 operations a second of all threads: `rounds` does `operations` of them.
double peak_giga(float (*rounds)(), int64_t operations) {
  const int64_t threads = base::num_threads();
  std::atomic<float> sink = 0;
  // The best run: a peak is what the machine can do, not what it did on average.
  const double seconds = best_seconds(kManyRuns, [&](int) {
    base::parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sink = rounds();
    });
  });
  return static_cast<double>(threads * operations) / seconds * 1e-9;
}

}  // namespace

MachinePeaks measure_machine() {
  MachinePeaks peaks;
  constexpr int64_t kInstructions = kRounds * kChains;
  peaks.f32_gflop_per_s = peak_giga(multiply_add_rounds, kInstructions * 2 * 8);
  if (kernels::has_amx())
    peaks.bf16_gflop_per_s = peak_giga(
        tile_rounds, kTileProducts * 2 * kernels::kAmxRows * kernels::kAmxCols * kernels::kAmxK);
  else if (kernels::has_bf16_dot())
    peaks.bf16_gflop_per_s = peak_giga(bf16_rounds, kInstructions * 2 * 32);
  if (has_int8_dot()) peaks.int8_gop_per_s = peak_giga(int8_rounds, kInstructions * 2 * 64);
  const int64_t threads = base::num_threads();
  std::atomic<float> sink = 0;
  const std::vector<float> buffer(kBufferFloats, 1.0f);
  // Part after part: the others drive it out of the last cache before its turn comes again.
  constexpr int64_t kPartFloats = kBufferFloats / kBufferParts;
  const double read_s = best_seconds(kManyRuns, [&](int i) {
    const float* const part = buffer.data() + i % kBufferParts * kPartFloats;
    base::parallel_for(kPartFloats, kPartFloats / threads, [&](int64_t begin, int64_t end) {
      sink = sum_of(part + begin, end - begin);
    });
  });
  peaks.read_gbyte_per_s = static_cast<double>(kPartFloats * sizeof(float)) / read_s * 1e-9;
  return peaks;
}

int64_t resident_bytes() {
  long pages = 0, resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file && std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
  if (file) std::fclose(file);
  return resident * ::sysconf(_SC_PAGESIZE);
}

}  // namespace fathom::bench
