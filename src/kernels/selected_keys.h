// Which keys each query of a sequence attends to: lists one behind another.
#pragma once

#include <cstdint>
#include <span>

namespace fathom::kernels {

// Query t's keys are keys[begins_T1[t]..begins_T1[t + 1]), ascending. Empty: no selection.
struct SelectedKeys {
  const int32_t* keys = nullptr;
  const int64_t* begins_T1 = nullptr;
  int64_t num_queries = 0;

  bool empty() const { return num_queries == 0; }
  std::span<const int32_t> operator[](int64_t t) const {
    return {keys + begins_T1[t], keys + begins_T1[t + 1]};
  }
  SelectedKeys slice(int64_t begin, int64_t count) const {
    return {keys, begins_T1 + begin, count};
  }
};

}  // namespace fathom::kernels
