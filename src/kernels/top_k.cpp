#include "kernels/top_k.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "kernels/simd.h"

namespace fathom::kernels {
namespace {

// Unsigned integers in the order of the floats: -0 equals 0, NaN equals -inf.
FATHOM_INLINE uint32_t ordered_bits(float score) {
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  const auto bits = std::bit_cast<uint32_t>(score == score ? score + 0.0f : kMinusInfinity);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

// The three digits that values are selected by, 11 + 11 + 10 bits.
struct Digit {
  int shift;
  uint32_t mask;
  uint32_t of(uint32_t bits) const { return bits >> shift & mask; }
};
constexpr Digit kDigits[] = {{21, 2047}, {10, 2047}, {0, 1023}};

// Selected are all values above `value` and, of those equal to it, the first `num_ties`.
struct Threshold {
  uint32_t value = 0;
  int64_t num_ties = 0;
};

// Digit by digit from the top: which bin holds the k-th greatest; the next digit looks at that
// bin's values only. 0 < k <= size.
Threshold find_threshold(std::span<const uint32_t> ordered, int64_t k) {
  static thread_local std::vector<uint32_t> candidates;
  candidates.assign(ordered.begin(), ordered.end());
  int64_t wanted = k;
  for (const Digit& digit : kDigits) {
    uint32_t count[2048] = {};
    for (const uint32_t bits : candidates) ++count[digit.of(bits)];
    uint32_t bin = digit.mask;
    while (count[bin] < wanted) wanted -= count[bin--];
    std::erase_if(candidates, [&](uint32_t bits) { return digit.of(bits) != bin; });
    if (static_cast<int64_t>(candidates.size()) == wanted) break;  // the whole bin is selected
  }
  const uint32_t value = *std::min_element(candidates.begin(), candidates.end());
  const int64_t num_above = std::count_if(candidates.begin(), candidates.end(),
                                          [value](uint32_t bits) { return bits > value; });
  return {value, wanted - num_above};
}

}  // namespace

void top_k(std::span<const float> scores, int64_t k, std::vector<int32_t>& indices) {
  const auto size = static_cast<int64_t>(scores.size());
  indices.resize(std::clamp<int64_t>(k, 0, size));
  if (k >= size) {
    std::iota(indices.begin(), indices.end(), 0);
    return;
  }
  if (k <= 0) return;
  static thread_local std::vector<uint32_t> ordered;
  ordered.resize(size);
  for (int64_t i = 0; i < size; ++i) ordered[i] = ordered_bits(scores[i]);
  Threshold threshold = find_threshold(ordered, k);
  int64_t n = 0;
  for (int64_t i = 0; n < k; ++i) {
    const bool is_tie = ordered[i] == threshold.value;
    indices[n] = static_cast<int32_t>(i);
    n += ordered[i] > threshold.value || (is_tie && threshold.num_ties > 0);
    threshold.num_ties -= is_tie;
  }
}

void TopKStream::reset(int64_t k) {
  CHECK_GE(k, 1);
  k_ = k;
  size_ = 0;
  floor_ = 0;
  ordered_.resize(2 * k);
  indices_.resize(2 * k);
}

void TopKStream::append(uint32_t ordered, int32_t index) {
  ordered_[size_] = ordered;
  indices_[size_] = index;
  size_ += ordered > floor_;
  if (size_ == 2 * k_) prune();
}

void TopKStream::add(std::span<const float> scores, int32_t first) {
  for (size_t i = 0; i < scores.size(); ++i)
    append(ordered_bits(scores[i]), first + static_cast<int32_t>(i));
}

void TopKStream::add(const TopKStream& other) {
  for (int64_t i = 0; i < other.size_; ++i) append(other.ordered_[i], other.indices_[i]);
}

// Down to the k best; they stay in the order of their indices.
void TopKStream::prune() {
  Threshold threshold = find_threshold({ordered_.data(), static_cast<size_t>(size_)}, k_);
  int64_t n = 0;
  for (int64_t i = 0; i < size_; ++i) {
    const uint32_t bits = ordered_[i];
    const bool is_tie = bits == threshold.value;
    ordered_[n] = bits;
    indices_[n] = indices_[i];
    n += bits > threshold.value || (is_tie && threshold.num_ties > 0);
    threshold.num_ties -= is_tie;
  }
  size_ = n;
  floor_ = threshold.value;
}

void TopKStream::finish(std::vector<int32_t>& indices) {
  if (size_ > k_) prune();
  indices.assign(indices_.begin(), indices_.begin() + size_);
}

}  // namespace fathom::kernels
