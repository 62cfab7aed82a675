#include "base/random.h"

#include <cmath>
#include <numbers>

#include "base/check.h"

namespace fathom::base {
namespace {

// Finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection that passes statistical tests when
// fed a counter.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ULL;

}  // namespace

Random::Random(uint64_t seed, uint64_t stream)
    : key_(mix(mix(seed + kGolden) + stream * kGolden)) {}

uint64_t Random::next() { return mix(key_ + ++position_ * kGolden); }

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
