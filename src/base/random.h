// Counter-based random streams: the n-th number of a stream is a pure function of (seed, stream,
// n), so a run resumes by restoring one integer and never depends on thread order.
#pragma once

#include <cstdint>

namespace fathom::base {

inline constexpr uint64_t kRandomStep = 0x9e3779b97f4a7c15ULL;

// Finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection that passes statistical tests when
// fed a counter. Number n of the stream `key` is mix_bits(key + n * kRandomStep).
inline uint64_t mix_bits(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

class Random {
 public:
  explicit Random(uint64_t seed, uint64_t stream = 0);

  uint64_t next();                 // uniform over 64 bits
  double uniform();                // [0, 1)
  double normal();                 // mean 0, variance 1
  uint64_t below(uint64_t bound);  // uniform over [0, bound), bound >= 1
  uint64_t position() const { return position_; }
  void seek(uint64_t position) { position_ = position; }

 private:
  uint64_t key_;
  uint64_t position_ = 0;
};

}  // namespace fathom::base
