#include "kernels/top_k.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "kernels/bf16_dot.h"
#include "kernels/simd.h"

namespace fathom::kernels {
namespace {

// Scores that a stream takes before it looks whether it is full.
constexpr int64_t kPieceScores = 128;
// Room behind what is held, where whole registers are stored.
constexpr int64_t kLanesBehind = 15;

// Unsigned integers in the order of the floats: -0 equals 0, NaN equals -inf.
FATHOM_INLINE uint32_t ordered_bits(float score) {
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  const auto bits = std::bit_cast<uint32_t>(score == score ? score + 0.0f : kMinusInfinity);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

float float_of(uint32_t ordered) {
  return std::bit_cast<float>(ordered & 0x80000000u ? ordered ^ 0x80000000u : ~ordered);
}

// Selected are all values above `value` and, of those equal to it, the first `num_ties`.
struct Threshold {
  uint32_t value = 0;
  int64_t num_ties = 0;
};

// The least of the values that are at least some bound, and the greatest of all.
struct Bounds {
  uint32_t least, greatest;
};

namespace eight {

typedef uint32_t U32x8 __attribute__((vector_size(32)));

FATHOM_INLINE U32x8 load_bits(const uint32_t* p) {
  U32x8 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// ordered_bits() of eight scores.
FATHOM_INLINE U32x8 ordered_lanes(F32x8 scores) {
  const F32x8 numbers =
      scores == scores ? scores : broadcast(-std::numeric_limits<float>::infinity());
  const I32x8 bits = std::bit_cast<I32x8>(numbers + 0.0f);  // makes 0 of -0
  return std::bit_cast<U32x8>(bits ^ (bits >> 31 | std::numeric_limits<int32_t>::min()));
}

// orders[mask]: the lanes whose bit is set, in order, then lane 0.
constexpr std::array<std::array<uint8_t, 8>, 256> make_orders() {
  std::array<std::array<uint8_t, 8>, 256> orders{};
  for (int mask = 0; mask < 256; ++mask)
    for (int lane = 0, at = 0; lane < 8; ++lane)
      if (mask >> lane & 1) orders[mask][at++] = static_cast<uint8_t>(lane);
  return orders;
}
constexpr auto kOrders = make_orders();

// Writes eight lanes; returns how many count.
FATHOM_INLINE int64_t store_lanes(uint32_t kept, U32x8 ordered, I32x8 index, uint32_t* to_ordered,
                                  int32_t* to_indices) {
  typedef uint8_t U8x8 __attribute__((vector_size(8)));
  U8x8 bytes;
  std::memcpy(&bytes, kOrders[kept].data(), sizeof bytes);
  const I32x8 order = __builtin_convertvector(bytes, I32x8);
  const U32x8 values = __builtin_shuffle(ordered, order);
  const I32x8 indices = __builtin_shuffle(index, order);
  std::memcpy(to_ordered, &values, sizeof values);
  std::memcpy(to_indices, &indices, sizeof indices);
  return std::popcount(kept);
}

FATHOM_INLINE uint32_t first_bits(int64_t count) {
  return count >= kLanes ? 0xff : (1u << count) - 1;
}

KERNEL int64_t keep_above(uint32_t floor, std::span<const float> scores, int32_t first,
                          uint32_t* ordered, int32_t* indices) {
  const I32x8 lanes = {0, 1, 2, 3, 4, 5, 6, 7};
  const F32x8 least = broadcast(float_of(floor));
  int64_t kept = 0;
  for (int64_t i = 0; i < std::ssize(scores); i += kLanes) {
    const int64_t count = std::ssize(scores) - i;
    const F32x8 piece =
        count >= kLanes ? load(scores.data() + i) : load_partial(scores.data() + i, count);
    const uint32_t above = (floor == 0 ? 0xff : lane_bits(piece > least)) & first_bits(count);
    if (above == 0) continue;
    kept += store_lanes(above, ordered_lanes(piece), lanes + (first + static_cast<int32_t>(i)),
                        ordered + kept, indices + kept);
  }
  return kept;
}

KERNEL int64_t count_from(const uint32_t* values, int64_t size, uint32_t least) {
  uint32_t count = 0;
  for (int64_t i = 0; i < size; ++i) count += values[i] >= least;
  return count;
}

KERNEL Bounds bounds_from(const uint32_t* values, int64_t size, uint32_t least) {
  const U32x8 from = U32x8{} + least, most = ~U32x8{};
  U32x8 lows = most, highs{};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const U32x8 piece = load_bits(values + i);
    const U32x8 candidate = piece >= from ? piece : most;
    lows = lows < candidate ? lows : candidate;
    highs = highs > piece ? highs : piece;
  }
  Bounds bounds{most[0], 0};
  for (int64_t lane = 0; lane < kLanes; ++lane)
    bounds = {std::min(bounds.least, lows[lane]), std::max(bounds.greatest, highs[lane])};
  for (; i < size; ++i)
    bounds = {values[i] >= least ? std::min(bounds.least, values[i]) : bounds.least,
              std::max(bounds.greatest, values[i])};
  return bounds;
}

KERNEL int64_t keep_selected(Threshold threshold, int64_t size, uint32_t* ordered,
                             int32_t* indices) {
  const U32x8 value = U32x8{} + threshold.value;
  int64_t kept = 0;
  for (int64_t i = 0; i < size; i += kLanes) {
    const U32x8 piece = load_bits(ordered + i);
    I32x8 index;
    std::memcpy(&index, indices + i, sizeof index);
    const uint32_t valid = first_bits(size - i);
    uint32_t selected = lane_bits(piece > value) & valid;
    for (uint32_t ties = lane_bits(piece == value) & valid; ties != 0 && threshold.num_ties > 0;
         ties &= ties - 1, --threshold.num_ties)
      selected |= ties & -ties;  // the first ones
    kept += store_lanes(selected, piece, index, ordered + kept, indices + kept);
  }
  return kept;
}

}  // namespace eight

// The same sixteen at a time.
namespace sixteen {

#if FATHOM_HAS_BF16_KERNELS

// ordered_bits() of sixteen scores.
BF16_INLINE __m512i ordered_lanes(__m512 scores) {
  const __mmask16 is_number = _mm512_cmp_ps_mask(scores, scores, _CMP_ORD_Q);
  const __m512 numbers = _mm512_mask_mov_ps(_mm512_set1_ps(-std::numeric_limits<float>::infinity()),
                                            is_number, scores);
  // Adding 0 makes 0 of -0.
  const auto bits = reinterpret_cast<__m512i>(_mm512_add_ps(numbers, _mm512_setzero_ps()));
  return _mm512_xor_si512(bits,
                          _mm512_or_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(1 << 31)));
}

// Compressed in a register, then stored whole: some processors compress slowly into memory. Writes
// sixteen lanes; returns how many count.
BF16_INLINE int64_t store_lanes(__mmask16 kept, __m512i ordered, __m512i index,
                                uint32_t* to_ordered, int32_t* to_indices) {
  _mm512_storeu_si512(to_ordered, _mm512_maskz_compress_epi32(kept, ordered));
  _mm512_storeu_si512(to_indices, _mm512_maskz_compress_epi32(kept, index));
  return __builtin_popcount(kept);
}

BF16_KERNEL int64_t keep_above(uint32_t floor, std::span<const float> scores, int32_t first,
                               uint32_t* ordered, int32_t* indices) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512 least = _mm512_set1_ps(float_of(floor));
  int64_t kept = 0;
  for (int64_t i = 0; i < std::ssize(scores); i += 16) {
    const __mmask16 valid = first_lanes(std::ssize(scores) - i);
    const __m512 piece = _mm512_maskz_loadu_ps(valid, scores.data() + i);
    const __mmask16 above =
        floor == 0 ? valid : _mm512_mask_cmp_ps_mask(valid, piece, least, _CMP_GT_OQ);
    if (above == 0) continue;
    const __m512i index =
        _mm512_add_epi32(_mm512_set1_epi32(first + static_cast<int32_t>(i)), lanes);
    kept += store_lanes(above, ordered_lanes(piece), index, ordered + kept, indices + kept);
  }
  return kept;
}

BF16_KERNEL int64_t count_from(const uint32_t* values, int64_t size, uint32_t least) {
  const __m512i from = _mm512_set1_epi32(static_cast<int>(least)), one = _mm512_set1_epi32(1);
  __m512i count[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  int64_t i = 0;
  for (; i + 32 <= size; i += 32)
    for (int half = 0; half < 2; ++half) {
      const __m512i piece = _mm512_loadu_si512(values + i + 16 * half);
      count[half] = _mm512_mask_add_epi32(count[half], _mm512_cmpge_epu32_mask(piece, from),
                                          count[half], one);
    }
  for (; i < size; i += 16) {
    const __mmask16 valid = first_lanes(size - i);
    const __m512i piece = _mm512_maskz_loadu_epi32(valid, values + i);
    count[0] = _mm512_mask_add_epi32(count[0], _mm512_mask_cmpge_epu32_mask(valid, piece, from),
                                     count[0], one);
  }
  return _mm512_reduce_add_epi32(_mm512_add_epi32(count[0], count[1]));
}

BF16_KERNEL Bounds bounds_from(const uint32_t* values, int64_t size, uint32_t least) {
  const __m512i from = _mm512_set1_epi32(static_cast<int>(least));
  __m512i low = _mm512_set1_epi32(-1), high = _mm512_setzero_si512();
  for (int64_t i = 0; i < size; i += 16) {
    const __mmask16 valid = first_lanes(size - i);
    const __m512i piece = _mm512_maskz_loadu_epi32(valid, values + i);
    low = _mm512_mask_min_epu32(low, _mm512_mask_cmpge_epu32_mask(valid, piece, from), low, piece);
    high = _mm512_max_epu32(high, piece);
  }
  return {_mm512_reduce_min_epu32(low), _mm512_reduce_max_epu32(high)};
}

BF16_KERNEL int64_t keep_selected(Threshold threshold, int64_t size, uint32_t* ordered,
                                  int32_t* indices) {
  const __m512i value = _mm512_set1_epi32(static_cast<int>(threshold.value));
  int64_t kept = 0;
  for (int64_t i = 0; i < size; i += 16) {
    const __mmask16 valid = first_lanes(size - i);
    const __m512i piece = _mm512_maskz_loadu_epi32(valid, ordered + i);
    const __m512i index = _mm512_maskz_loadu_epi32(valid, indices + i);
    const __mmask16 above = _mm512_mask_cmpgt_epu32_mask(valid, piece, value);
    const uint32_t ties =  // the first ones
        _pdep_u32(first_lanes(threshold.num_ties),
                  _mm512_mask_cmpeq_epu32_mask(valid, piece, value));
    threshold.num_ties -= __builtin_popcount(ties);
    kept += store_lanes(static_cast<__mmask16>(above | ties), piece, index, ordered + kept,
                        indices + kept);
  }
  return kept;
}

#else

// Never called: has_bf16_dot() is false.
int64_t keep_above(uint32_t, std::span<const float>, int32_t, uint32_t*, int32_t*) { return 0; }
int64_t count_from(const uint32_t*, int64_t, uint32_t) { return 0; }
Bounds bounds_from(const uint32_t*, int64_t, uint32_t) { return {}; }
int64_t keep_selected(Threshold, int64_t, uint32_t*, int32_t*) { return 0; }

#endif

}  // namespace sixteen

// Appends the scores above `floor` (in order of the floats; all where it is 0) in order, with their
// indices; returns how many. Where nothing is above, which is the rule late in a long context, it
// costs one comparison. Writes whole registers, as keep_selected does.
int64_t keep_above(uint32_t floor, std::span<const float> scores, int32_t first, uint32_t* ordered,
                   int32_t* indices) {
  const auto keep = has_bf16_dot() ? sixteen::keep_above : eight::keep_above;
  return keep(floor, scores, first, ordered, indices);
}

// Moves what the threshold selects to the front, in order; returns how many that is. Writes whole
// registers: up to fifteen lanes behind the size.
int64_t keep_selected(Threshold threshold, int64_t size, uint32_t* ordered, int32_t* indices) {
  const auto keep = has_bf16_dot() ? sixteen::keep_selected : eight::keep_selected;
  return keep(threshold, size, ordered, indices);
}

// The k-th greatest of the values: by halving the range in which it lies, until k values are left
// above or one value, with values that differ in some twelve passes over them. 0 < k <= size.
Threshold find_threshold(std::span<const uint32_t> ordered, int64_t k) {
  const auto count_from = has_bf16_dot() ? sixteen::count_from : eight::count_from;
  const auto bounds_from = has_bf16_dot() ? sixteen::bounds_from : eight::bounds_from;
  const auto size = std::ssize(ordered);
  const Bounds all = bounds_from(ordered.data(), size, 0);
  uint32_t low = all.least, end = all.greatest + 1;  // at least k from `low` on, fewer from `end`
  for (int64_t count = size; count != k && end - low > 1;) {
    const uint32_t middle = low + (end - low) / 2;
    const int64_t upper = count_from(ordered.data(), size, middle);
    if (upper >= k) count = upper;
    (upper >= k ? low : end) = middle;
  }
  const uint32_t value = bounds_from(ordered.data(), size, low).least;
  return {value, k - count_from(ordered.data(), size, value + 1)};
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
  ordered_.resize(2 * k + kPieceScores + kLanesBehind);
  indices_.resize(2 * k + kPieceScores + kLanesBehind);
}

void TopKStream::append(uint32_t ordered, int32_t index) {
  ordered_[size_] = ordered;
  indices_[size_] = index;
  size_ += ordered > floor_;
  if (size_ >= 2 * k_) prune();
}

void TopKStream::add(std::span<const float> scores, int32_t first) {
  const auto count = std::ssize(scores);
  for (int64_t i = 0; i < count; i += kPieceScores) {
    size_ += keep_above(floor_, scores.subspan(i, std::min(kPieceScores, count - i)),
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
  const Threshold threshold = find_threshold({ordered_.data(), static_cast<size_t>(size_)}, k_);
  floor_ = threshold.value;
  size_ = keep_selected(threshold, size_, ordered_.data(), indices_.data());
}

void TopKStream::shrink() {
  if (size_ > k_) prune();
}

void TopKStream::finish(std::vector<int32_t>& indices) {
  shrink();
  indices.assign(indices_.begin(), indices_.begin() + size_);
}

}  // namespace fathom::kernels
