// A few neighbouring queries and the keys that any of them selected, so that a key's row is read
// once for all of them.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/bf16_tile.h"
#include "kernels/selected_keys.h"

namespace fathom::kernels {

inline constexpr int64_t kGroupQueries = 8;

// Numbers for keys come in two orders: a query's own, and the group's, which holds every key that
// one of the group's queries selected. Both ascend; their rows are padded to a multiple of 16.
class QueryGroup {
 public:
  // Queries [begin, end) of keys_T, at most kGroupQueries. Serial; has_bf16_dot() processors only.
  void assign(SelectedKeys keys_T, int64_t begin, int64_t end);

  int64_t begin() const { return begin_; }
  int64_t size() const { return size_; }
  int64_t most_padded() const { return most_padded_; }  // of a query's own keys

  std::span<const int32_t> keys() const { return {keys_.data(), static_cast<size_t>(num_keys_)}; }
  int64_t num_padded_keys() const { return num_padded_keys_; }
  // Bit i of word w: whether query begin() + q selected keys()[16w + i].
  const uint16_t* is_selected(int64_t q) const { return is_selected_[q].data(); }

 private:
  int64_t begin_ = 0, size_ = 0, most_padded_ = 0, num_keys_ = 0, num_padded_keys_ = 0;
  std::vector<int32_t> keys_;
  std::array<std::vector<uint16_t>, kGroupQueries> is_selected_;
};

}  // namespace fathom::kernels
