// What this machine can do at most, measured in the run whose figures are held against it.
#pragma once

#include <cstdint>

namespace fathom::bench {

struct MachinePeaks {
  double f32_gflop_per_s = 0;   // fused multiply-adds of eight lanes in registers, all threads
  double bf16_gflop_per_s = 0;  // products of AMX tiles, or else dot products of bf16 pairs; 0
                                // where kernels may use neither
  double int8_gop_per_s = 0;    // dot products of four bytes; 0 likewise
  double read_gbyte_per_s = 0;  // streaming a buffer far beyond the last cache, all threads
};

// About a second; allocates 256 MiB. Runs on base::num_threads() threads.
MachinePeaks measure_machine();

// Of this process, as the system counts it; 0 where it does not say.
int64_t resident_bytes();

}  // namespace fathom::bench
