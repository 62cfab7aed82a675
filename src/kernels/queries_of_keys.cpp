#include "kernels/queries_of_keys.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "base/check.h"
#include "kernels/simd.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kMostVectors = 8;  // columns whose sums stay in registers
constexpr int64_t kAhead = 8;        // keys whose rows are fetched before their turn

struct Lists {
  const int32_t *keys, *begins, *places;
  int64_t num_keys, stride_bits;
};

// kVectors vectors of columns, of which the last has `last` columns.
template <int kVectors>
KERNEL void add_columns(const Lists& lists, const float* weights, View2<const float> x, float* rows,
                        int64_t stride, int64_t last) {
  for (int64_t i = 0; i < lists.num_keys; ++i) {
    float* const row = rows + lists.keys[i] * stride;
    float* const end = row + (kVectors - 1) * kLanes;
    __builtin_prefetch(rows + lists.keys[i + kAhead < lists.num_keys ? i + kAhead : i] * stride, 1);
    F32x8 sum[kVectors];
    for (int v = 0; v + 1 < kVectors; ++v) sum[v] = load(row + v * kLanes);
    sum[kVectors - 1] = last == kLanes ? load(end) : load_partial(end, last);
    for (int32_t p = lists.begins[i]; p < lists.begins[i + 1]; ++p) {
      const int32_t place = lists.places[p];
      const F32x8 weight = broadcast(weights[place]);
      const float* const of_query = x[place >> lists.stride_bits];
      for (int v = 0; v < kVectors; ++v) sum[v] += weight * load(of_query + v * kLanes);
    }
    for (int v = 0; v + 1 < kVectors; ++v) store(row + v * kLanes, sum[v]);
    if (last == kLanes)
      store(end, sum[kVectors - 1]);
    else
      store_partial(end, sum[kVectors - 1], last);
  }
}

constexpr decltype(&add_columns<1>) kAddColumns[kMostVectors] = {
    add_columns<1>, add_columns<2>, add_columns<3>, add_columns<4>,
    add_columns<5>, add_columns<6>, add_columns<7>, add_columns<8>};

}  // namespace

void QueriesOfKeys::assign(SelectedKeys keys_T, int64_t begin, int64_t end) {
  // Of each key from the first to the last: how many queries selected it, then where its next place
  // is.
  static thread_local std::vector<int32_t> next_S;
  int32_t first = std::numeric_limits<int32_t>::max(), last = -1;
  int64_t most = kLanes, num_places = 0;
  for (int64_t t = begin; t < end; ++t) {
    const auto keys = keys_T[t];
    if (keys.empty()) continue;
    most = std::max(most, std::ssize(keys));
    num_places += std::ssize(keys);
    first = std::min(first, keys.front());
    last = std::max(last, keys.back());
  }
  stride_bits_ = std::bit_width(static_cast<uint64_t>(most - 1));
  CHECK_LE((end - begin) << stride_bits_, std::numeric_limits<int32_t>::max());
  keys_.clear();
  begins_.assign(1, 0);
  places_.resize(num_places);
  if (num_places == 0) return;
  if (std::ssize(next_S) <= last) next_S.resize(last + 1);
  std::fill(next_S.begin() + first, next_S.begin() + last + 1, 0);
  for (int64_t t = begin; t < end; ++t)
    for (const int32_t s : keys_T[t]) ++next_S[s];
  for (int32_t s = first; s <= last; ++s) {
    if (next_S[s] == 0) continue;
    keys_.push_back(s);
    begins_.push_back(begins_.back() + std::exchange(next_S[s], begins_.back()));
  }
  for (int64_t t = begin; t < end; ++t) {
    int32_t place = static_cast<int32_t>((t - begin) << stride_bits_);
    for (const int32_t s : keys_T[t]) places_[next_S[s]++] = place++;
  }
}

void QueriesOfKeys::add_weighted(const float* weights, View2<const float> x,
                                 View2<float> rows) const {
  const Lists lists{keys_.data(), begins_.data(), places_.data(), std::ssize(keys_), stride_bits_};
  for (int64_t d = 0; d < rows.cols; d += kMostVectors * kLanes) {
    const int64_t cols = std::min(kMostVectors * kLanes, rows.cols - d);
    const int64_t vectors = (cols + kLanes - 1) / kLanes;
    kAddColumns[vectors - 1](lists, weights, View2<const float>(x.data + d, x.rows, cols, x.stride),
                             rows.data + d, rows.stride, cols - (vectors - 1) * kLanes);
  }
}

}  // namespace fathom::kernels
