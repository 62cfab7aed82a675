#include "kernels/key_union.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "base/check.h"
#include "kernels/bf16_dot.h"
#include "kernels/tile.h"

namespace fathom::kernels {

#if FATHOM_HAS_BF16_KERNELS

namespace {

constexpr int64_t kKeysAtOnce = 16;
constexpr int64_t kPadding = 32;

// Goes through the selectors of keys [begin, end), whole registers, which become zero. Writes the
// keys that have one, and it, with up to 16 places more.
BF16_KERNEL int64_t collect(uint32_t* selectors_S, int64_t begin, int64_t end, int32_t* keys,
                            uint32_t* selectors) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  int64_t count = 0;
  for (int64_t s = begin; s < end; s += kKeysAtOnce) {
    const __m512i sixteen = _mm512_loadu_si512(selectors_S + s);
    const __mmask16 any = _mm512_test_epi32_mask(sixteen, sixteen);
    if (any == 0) continue;
    _mm512_storeu_si512(selectors_S + s, _mm512_setzero_si512());
    const __m512i key = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(s)));
    _mm512_storeu_si512(keys + count, _mm512_maskz_compress_epi32(any, key));
    _mm512_storeu_si512(selectors + count, _mm512_maskz_compress_epi32(any, sixteen));
    count += std::popcount(static_cast<uint32_t>(any));
  }
  return count;
}

}  // namespace

void KeyUnion::assign(SelectedKeys keys_T, int64_t begin, int64_t end) {
  static thread_local std::vector<uint32_t> selectors_S;  // zero between calls
  begin_ = begin;
  size_ = end - begin;
  CHECK_LE(size_, kUnionQueries);
  int32_t first = std::numeric_limits<int32_t>::max(), last = -1;
  int64_t num_selected = 0;
  for (int64_t q = 0; q < size_; ++q) {
    const auto keys = keys_T[begin + q];
    if (keys.empty()) continue;
    num_selected += std::ssize(keys);
    first = std::min(first, keys.front());
    last = std::max(last, keys.back());
    if (std::ssize(selectors_S) <= last + kKeysAtOnce) selectors_S.resize(last + kKeysAtOnce + 1);
    for (const int32_t s : keys) selectors_S[s] |= uint32_t{1} << q;
  }
  const int64_t most = std::min<int64_t>(num_selected, last + 1 - first);
  keys_.resize(std::max<int64_t>(most, 0) + kPadding);
  selectors_.resize(keys_.size());
  num_keys_ = num_selected == 0
                  ? 0
                  : collect(selectors_S.data(), first, last + 1, keys_.data(), selectors_.data());
  num_padded_keys_ = round_up(num_keys_, kPadding);
  for (int64_t i = num_keys_; i < num_padded_keys_; ++i) {
    keys_[i] = last;
    selectors_[i] = 0;
  }
}

#else

void KeyUnion::assign(SelectedKeys, int64_t, int64_t) { CHECK(false, "no bf16 kernels here"); }

#endif

}  // namespace fathom::kernels
