// Attention over selected tokens in MLA's MQA (absorbed) form: report of V3.2, section 2.1 and
// appendix A.
#pragma once

#include <cstdint>

#include "base/array_view.h"
#include "kernels/paged_rows.h"

namespace fathom::kernels {

// One query. All heads share a latent row [latent C | rope R] a key, which is the key and, in its
// first C values, the value: out[h] = sum_i softmax_i(scale * q[h] . row[keys[i]])
// row[keys[i]][:C]. Each row is widened once for all heads. keys: num_keys rows in the order given;
// null: rows 0..num_keys-1 (dense). No keys give zeros.
struct SparseMla {
  View2<const float> q_HD;  // D = C + R
  PagedRows latent_SD;
  const int32_t* keys = nullptr;
  int64_t num_keys = 0;
  float scale = 1;
  View2<float> out_HC;
};

// Keys are taken in blocks, and blocks in at most 16 parts, whose bounds depend on num_keys alone:
// the bits depend on the query and its keys only. Parallel over the parts. Scratch a part:
// H * (C + 34) floats, and a thread's: a block of widened rows with its scores.
//
// An F32 cache is read in f32: oracle reference::sparse_mla, 2e-5. BF16 and FP8 caches are too
// where the processor lacks AVX512-BF16. Where it has it, their rows widen to bf16 (exactly), and q
// and the softmax's weights are rounded to bf16, as in the published reference, which multiplies in
// bf16; sums are f32, in an order of their own where it has AMX.
// Oracle: the reference on the rounded q, within 2^-8 of the mean of |value|
// under the same softmax, plus 2e-5.
void sparse_mla(const SparseMla& io);

namespace reference {
void sparse_mla(const SparseMla& io);
}

}  // namespace fathom::kernels
