// The blocks of linear_cross_entropy in AMX's tiles. Callers ask has_amx() first.
#pragma once

#include "kernels/bf16_tile.h"
#include "kernels/linear_cross_entropy.h"
#include "kernels/linear_cross_entropy_block.h"

namespace fathom::kernels {

// Logits lie [column][32 rows], so that sums run down the lanes and both gradients take them as
// they lie. The head is packed once, a band of x once for all its blocks. Products sum 32 k at a
// time in amx_tile.h's order; gradients of logits are rounded to bf16 as gemm's operands are.
class LogitBlocksAmx {
 public:
  // Packs the head, on all threads.
  explicit LogitBlocksAmx(const LinearCrossEntropy& io);

  // The rows that blocks belong to until the next call; packs them, on all threads.
  void begin_band(Span rows);

  // sums[i].add(row rows.begin + i's exponentials of these columns); chosen[i] = the target's logit
  // where it is among them.
  void sum(Span rows, Span columns, ExpSum* sums, float* chosen) const;

  // Adds the block's part to dhead_VD (the first rows of all write) and to dx, which holds
  // part_floats() for the band (the first columns of those that share it write). sums: of whole
  // rows, from rows.begin on.
  void add_gradients(Span rows, Span columns, const ExpSum* sums, bool is_first_of_columns,
                     float* dx) const;

  int64_t part_floats(int64_t num_rows) const;
  // dx_MD's rows = the sums of their parts, in order. rows.begin: a multiple of 32 from the band's.
  void join(Span rows, const float* parts, int64_t num_parts, int64_t part_stride) const;

 private:
  void multiply_strip(int64_t row, Span columns, float* strip) const;
  void differentiate_strip(int64_t row, int64_t num_rows, Span columns, const ExpSum* sums,
                           float* strip) const;

  struct Packed {
    LineBuffer head_rows, head_transposed, x_columns, x_rows;
  };
  static Packed& packed_of_thread();

  const LinearCrossEntropy& io_;
  Span band_ = {0, 0};
  Packed& packed_;  // the constructing thread's, kept for the next call
};

}  // namespace fathom::kernels
