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
// H * (C + 2) floats, and a block of widened rows a thread. Oracle reference::sparse_mla, 2e-5.
void sparse_mla(const SparseMla& io);

namespace reference {
void sparse_mla(const SparseMla& io);
}

}  // namespace fathom::kernels
