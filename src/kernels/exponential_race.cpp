#include "kernels/exponential_race.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/random.h"
#include "kernels/simd.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kBlock = 256;

// [0, 1), from the upper 52 bits: as the mantissa of a number from 1 to 2.
FATHOM_INLINE double uniform(uint64_t bits) {
  return std::bit_cast<double>(uint64_t{0x3ff0000000000000} | bits >> 12) - 1.0;
}

KERNEL void uniforms(uint64_t key, const int32_t* ids, int64_t begin, int64_t count, double* out) {
  if (ids == nullptr)
    for (int64_t i = 0; i < count; ++i)
      out[i] = uniform(base::mix_bits(key + static_cast<uint64_t>(begin + i) * base::kRandomStep));
  else
    for (int64_t i = 0; i < count; ++i)
      out[i] =
          uniform(base::mix_bits(key + static_cast<uint64_t>(ids[begin + i]) * base::kRandomStep));
}

// Whether any clock could ring before `first`: -log(1 - u) >= u. No branch, eight at a time.
KERNEL bool may_ring_before(double first, const float* weight, const double* u, int64_t count) {
  uint64_t found = 0;
  for (int64_t i = 0; i < count; ++i) found |= u[i] < first * static_cast<double>(weight[i]);
  return found != 0;
}

}  // namespace

int64_t first_to_ring(const float* weight, const int32_t* ids, int64_t count, uint64_t key) {
  double first = std::numeric_limits<double>::max();
  int64_t winner = -1;
  double u[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = std::min(kBlock, count - begin);
    uniforms(key, ids, begin, size, u);
    if (!may_ring_before(first, weight + begin, u, size)) continue;
    for (int64_t i = 0; i < size; ++i) {
      const double rate = weight[begin + i];
      if (!(u[i] < first * rate)) continue;
      const double time = -std::log1p(-u[i]) / rate;
      if (time >= first) continue;
      first = time;
      winner = begin + i;
    }
  }
  return winner;
}

}  // namespace fathom::kernels
