// Thirty-two neighbouring queries and the keys that any of them selected: dense products with the
// latter serve all of the former, where the processor multiplies so fast that the products which
// nobody asked for cost less than reading rows query by query.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/selected_keys.h"

namespace fathom::kernels {

inline constexpr int64_t kUnionQueries = 32;

class KeyUnion {
 public:
  // Queries [begin, end) of keys_T, at most kUnionQueries. Serial; has_bf16_dot() processors only.
  void assign(SelectedKeys keys_T, int64_t begin, int64_t end);

  int64_t begin() const { return begin_; }
  int64_t size() const { return size_; }

  // Ascending, without repeats.
  std::span<const int32_t> keys() const { return {keys_.data(), static_cast<size_t>(num_keys_)}; }
  // Filled up to a multiple of 32 with the last one, which no query selects there.
  std::span<const int32_t> padded_keys() const {
    return {keys_.data(), static_cast<size_t>(num_padded_keys_)};
  }
  // Of padded_keys()[i]: bit q says whether query begin() + q selected it.
  const uint32_t* selectors() const { return selectors_.data(); }

 private:
  int64_t begin_ = 0, size_ = 0, num_keys_ = 0, num_padded_keys_ = 0;
  std::vector<int32_t> keys_;
  std::vector<uint32_t> selectors_;
};

}  // namespace fathom::kernels
