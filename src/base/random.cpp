#include "base/random.h"

#include <cmath>
#include <numbers>

#include "base/check.h"

namespace fathom::base {

Random::Random(uint64_t seed, uint64_t stream)
    : key_(mix_bits(mix_bits(seed + kRandomStep) + stream * kRandomStep)) {}

uint64_t Random::next() { return mix_bits(key_ + ++position_ * kRandomStep); }

double Random::uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

double Random::normal() {
  const double radius = std::sqrt(-2.0 * std::log1p(-uniform()));
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}

uint64_t Random::below(uint64_t bound) {
  CHECK_GE(bound, 1u);
  // Rejects the incomplete last multiple of bound, so that every value is equally likely.
  const uint64_t limit = UINT64_MAX - UINT64_MAX % bound;
  uint64_t value = next();
  while (value >= limit) value = next();
  return value % bound;
}

}  // namespace fathom::base
