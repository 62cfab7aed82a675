// Exact selection of the k greatest scores, ties to the lower index (report of V3.2, eq. (2)).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fathom::kernels {

// Indices of the k greatest of scores (all of them if k >= size), ascending. -0 equals 0, NaN
// counts as -inf. By halving the range of the k-th greatest.
void top_k(std::span<const float> scores, int64_t k, std::vector<int32_t>& indices);

// The same over scores that come in pieces, which are never held whole: memory for 2 k of them
// and a piece of 128. A score costs next to nothing once k greater ones are known.
class TopKStream {
 public:
  // Begins anew.
  void reset(int64_t k);
  // Scores of indices [first, first + scores.size()). Indices must not descend between calls.
  void add(std::span<const float> scores, int32_t first);
  // Lets go of all but the k greatest so far: nothing changes, but another stream adds less.
  void shrink();
  // What another stream holds, whose indices all lie behind this one's.
  void add(const TopKStream& other);
  // The selection, ascending.
  void finish(std::vector<int32_t>& indices);

 private:
  void append(uint32_t ordered, int32_t index);
  void prune();

  int64_t k_ = 0;
  int64_t size_ = 0;
  uint32_t floor_ = 0;  // what a score must exceed once k have been held, in order of the floats
  std::vector<uint32_t> ordered_;
  std::vector<int32_t> indices_;
};

}  // namespace fathom::kernels
