// A selection the other way round: which of a block of queries selected each key, so that what they
// add to a key is summed in registers and its row is read and written once for all of them.
#pragma once

#include <cstdint>
#include <vector>

#include "base/array_view.h"
#include "kernels/selected_keys.h"

namespace fathom::kernels {

class QueriesOfKeys {
 public:
  // Queries [begin, end) of keys_T. Serial; looks at every key from the first to the last that any
  // of them selected. Scratch: four bytes for each of these a thread.
  void assign(SelectedKeys keys_T, int64_t begin, int64_t end);

  // Where weights stand: that of query begin + q for the i-th of its own keys at
  // q * weights_stride() + i. A power of two, at least eight.
  int64_t weights_stride() const { return int64_t{1} << stride_bits_; }

  // rows[key][d] += sum over its queries of their weight * x[q][d], in the order of the queries, in
  // f32. x: a row for each query of the block, rows.cols numbers rounded up to eight, of which
  // those beyond rows.cols count for nothing. Serial; does not allocate.
  void add_weighted(const float* weights, View2<const float> x, View2<float> rows) const;

 private:
  int64_t stride_bits_ = 0;
  std::vector<int32_t> keys_;    // ascending
  std::vector<int32_t> begins_;  // of each key's places, and their end
  std::vector<int32_t> places_;  // of weights, by key and then by query
};

}  // namespace fathom::kernels
