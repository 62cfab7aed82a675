#include "kernels/query_group.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "base/check.h"
#include "kernels/tile.h"

namespace fathom::kernels {

#if FATHOM_HAS_BF16_KERNELS

namespace {

constexpr int64_t kKeysAtOnce = 64;
static_assert(kGroupQueries <= 8, "a selector is a byte");

// Appends bits to an array of words that is zero from there on.
struct BitWriter {
  uint16_t* words;
  int64_t num_bits = 0;

  // The low `count` bits of `bits`, whose others are zero; count below 65.
  void append(uint64_t bits, int64_t count) {
    for (int64_t left = count; left > 0;) {
      const int64_t at = num_bits % 16, size = std::min(16 - at, left);
      words[num_bits / 16] |= static_cast<uint16_t>(bits << at);
      bits >>= size;
      num_bits += size;
      left -= size;
    }
  }
};

// Goes through the selectors of keys [begin, end), whole registers, which become zero. Writes the
// keys that have one, up to 16 places more, and which of them each query selected.
BF16_KERNEL int64_t collect(uint8_t* selectors_S, int64_t begin, int64_t end, int32_t* keys,
                            std::array<BitWriter, kGroupQueries>& is_selected) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  int64_t count = 0;
  for (int64_t s = begin; s < end; s += kKeysAtOnce) {
    const __m512i selectors = _mm512_loadu_si512(selectors_S + s);
    const uint64_t any = _mm512_test_epi8_mask(selectors, selectors);
    if (any == 0) continue;
    _mm512_storeu_si512(selectors_S + s, _mm512_setzero_si512());
    const int64_t num_any = std::popcount(any);
    for (int64_t q = 0; q < kGroupQueries; ++q) {
      const uint64_t its = _mm512_test_epi8_mask(selectors, _mm512_set1_epi8(1 << q));
      is_selected[q].append(_pext_u64(its, any), num_any);
    }
    for (int64_t i = 0; i < kKeysAtOnce; i += 16) {
      const auto sixteen = static_cast<__mmask16>(any >> i);
      const __m512i key = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(s + i)));
      _mm512_storeu_si512(keys + count, _mm512_maskz_compress_epi32(sixteen, key));
      count += std::popcount(static_cast<uint32_t>(sixteen));
    }
  }
  return count;
}

}  // namespace

void QueryGroup::assign(SelectedKeys keys_T, int64_t begin, int64_t end) {
  // Bit q: query q selected the key; zero between calls.
  static thread_local std::vector<uint8_t> selectors_S;
  begin_ = begin;
  size_ = end - begin;
  CHECK_LE(size_, kGroupQueries);
  most_padded_ = 0;
  int32_t first = std::numeric_limits<int32_t>::max(), last = -1;
  int64_t most = 0;  // keys of the group
  for (int64_t q = 0; q < kGroupQueries; ++q) {
    const auto keys = q < size_ ? keys_T[begin + q] : std::span<const int32_t>{};
    if (keys.empty()) continue;
    most += std::ssize(keys);
    most_padded_ = std::max(most_padded_, round_up(std::ssize(keys), kPairLanes));
    first = std::min(first, keys.front());
    last = std::max(last, keys.back());
    if (std::ssize(selectors_S) <= last + kKeysAtOnce) selectors_S.resize(last + kKeysAtOnce + 1);
    for (const int32_t s : keys) selectors_S[s] |= static_cast<uint8_t>(1 << q);
  }
  keys_.resize(most + 2 * kPairLanes);
  std::array<BitWriter, kGroupQueries> writers;
  for (int64_t q = 0; q < kGroupQueries; ++q) {
    is_selected_[q].assign(most / kPairLanes + 1, 0);
    writers[q].words = is_selected_[q].data();
  }
  num_keys_ = most == 0 ? 0 : collect(selectors_S.data(), first, last + 1, keys_.data(), writers);
  num_padded_keys_ = round_up(num_keys_, kPairLanes);
}

#else

void QueryGroup::assign(SelectedKeys, int64_t, int64_t) { CHECK(false, "no bf16 kernels here"); }

#endif

}  // namespace fathom::kernels
