#include "kernels/top_k.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "kernels/bf16_dot.h"
#include "kernels/simd.h"

namespace fathom::kernels {
namespace {

// Scores that a stream takes before it looks whether it is full.
constexpr int64_t kPieceScores = 64;

// Unsigned integers in the order of the floats: -0 equals 0, NaN equals -inf.
FATHOM_INLINE uint32_t ordered_bits(float score) {
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  const auto bits = std::bit_cast<uint32_t>(score == score ? score + 0.0f : kMinusInfinity);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

float float_of(uint32_t ordered) {
  return std::bit_cast<float>(ordered & 0x80000000u ? ordered ^ 0x80000000u : ~ordered);
}

// Appends the scores above `floor` in order, with their indices; returns how many. Sixteen at a
// time: where nothing is above, which is the rule late in a long context, it costs one comparison.
#if FATHOM_HAS_BF16_KERNELS
BF16_KERNEL int64_t keep_above(float floor, std::span<const float> scores, int32_t first,
                               uint32_t* ordered, int32_t* indices) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  int64_t kept = 0;
  for (int64_t i = 0; i < std::ssize(scores); i += 16) {
    const int64_t count = std::ssize(scores) - i;
    const auto valid = static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
    const __m512 piece = _mm512_maskz_loadu_ps(valid, scores.data() + i);
    const __mmask16 above =
        _mm512_mask_cmp_ps_mask(valid, piece, _mm512_set1_ps(floor), _CMP_GT_OQ);
    if (above == 0) continue;
    const auto bits =
        reinterpret_cast<__m512i>(_mm512_add_ps(piece, _mm512_setzero_ps()));  // -0 becomes 0
    const __m512i sign = _mm512_or_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(1 << 31));
    const __m512i index =
        _mm512_add_epi32(_mm512_set1_epi32(first + static_cast<int32_t>(i)), lanes);
    // Compressed in a register, then stored whole: some processors compress slowly into memory.
    _mm512_storeu_si512(ordered + kept,
                        _mm512_maskz_compress_epi32(above, _mm512_xor_si512(bits, sign)));
    _mm512_storeu_si512(indices + kept, _mm512_maskz_compress_epi32(above, index));
    kept += __builtin_popcount(above);
  }
  return kept;
}
#else
int64_t keep_above(float, std::span<const float>, int32_t, uint32_t*, int32_t*) { return 0; }
#endif

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
  ordered_.resize(2 * k + kPieceScores);
  indices_.resize(2 * k + kPieceScores);
}

void TopKStream::append(uint32_t ordered, int32_t index) {
  ordered_[size_] = ordered;
  indices_[size_] = index;
  size_ += ordered > floor_;
  if (size_ >= 2 * k_) prune();
}

void TopKStream::add(std::span<const float> scores, int32_t first) {
  const auto count = std::ssize(scores);
  int64_t i = 0;
  while (i < count && (floor_ == 0 || !has_bf16_dot())) {
    append(ordered_bits(scores[i]), first + static_cast<int32_t>(i));
    ++i;
  }
  for (; i < count; i += kPieceScores) {
    size_ += keep_above(float_of(floor_), scores.subspan(i, std::min(kPieceScores, count - i)),
                        first + static_cast<int32_t>(i), ordered_.data() + size_,
                        indices_.data() + size_);
    if (size_ >= 2 * k_) prune();
  }
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
