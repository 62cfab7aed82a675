#include "kernels/matmul_amx.h"

#include <algorithm>

#include "kernels/amx_packed.h"
#include "kernels/bf16_tile.h"
#include "kernels/gemm_ranges.h"
#include "kernels/tile.h"

namespace fathom::kernels {

#if FATHOM_HAS_AMX_KERNELS

namespace {

constexpr int64_t kBlockK = 8;     // tiles: two columns of them, of B, stay in L1
constexpr int64_t kBlockM = 8;     // tiles that share them
constexpr int64_t kPackTiles = 4;  // lines' tiles that are packed as one item

// Thirty thousand cycles: some ten microseconds.
constexpr int64_t kLeastWork = 30000;

struct Scratch {
  LineBuffer a, b;
};

// for_each_range: ParallelRanges or SerialRanges.
template <typename ForEachRange>
void multiply_all(const GemmShape& shape, Strided a_MK, Strided b_KN, View2<float> c_MN,
                  bool accumulate, const ForEachRange& for_each_range) {
  static thread_local Scratch scratch;
  const TileOperand a{a_MK.data, shape.m, a_MK.row_stride, a_MK.col_stride, shape.k};
  const TileOperand b{b_KN.data, shape.n, b_KN.col_stride, b_KN.row_stride, shape.k};
  const int64_t num_k = a.num_k(), num_m = a.num_tiles(), num_n = b.num_tiles();
  auto* const a_tiles = scratch.a.reserve<uint32_t>(num_m * num_k * kTileWords);
  auto* const b_tiles = scratch.b.reserve<uint32_t>(num_n * num_k * kTileWords);
  const int64_t a_items = ceil_div(num_m, kPackTiles), b_items = ceil_div(num_n, kPackTiles);
  for_each_range(a_items + b_items, kPackTiles * num_k * 64, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item)
      if (item < a_items)
        pack_tiles<true>(a, item * kPackTiles, std::min((item + 1) * kPackTiles, num_m), a_tiles);
      else
        pack_tiles<false>(b, (item - a_items) * kPackTiles,
                          std::min((item - a_items + 1) * kPackTiles, num_n), b_tiles);
  });
  const PackedTiles packed_a{a_tiles, num_k}, packed_b{b_tiles, num_k};
  const int64_t m_blocks = ceil_div(num_m, kBlockM), n_pairs = ceil_div(num_n, 2);
  const int64_t work = std::min(num_m, kBlockM) * 2 * num_k * 16;
  for_each_range(m_blocks * n_pairs, work, [&](int64_t first, int64_t last) {
    const TileShape tiles(kAmxCols);
    for (int64_t item = first; item < last; ++item) {
      const int64_t begin = item / n_pairs * kBlockM, end = std::min(begin + kBlockM, num_m);
      for (int64_t k = 0; k < num_k; k += kBlockK)
        for (int64_t m = begin; m < end; m += 2)
          multiply_packed_tiles(packed_a, packed_b, m, item % n_pairs * 2, k,
                                std::min(k + kBlockK, num_k), c_MN, accumulate || k > 0);
    }
  });
}

}  // namespace

void gemm_amx(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN, bool accumulate) {
  multiply_all(shape, a, b, c_MN, accumulate, ParallelRanges{kLeastWork});
}

void gemm_amx_serial(const GemmShape& shape, Strided a, Strided b, View2<float> c_MN,
                     bool accumulate) {
  multiply_all(shape, a, b, c_MN, accumulate, SerialRanges{});
}

#else

void gemm_amx(const GemmShape&, Strided, Strided, View2<float>, bool) {
  CHECK(false, "no AMX: ask has_amx() first");
}
void gemm_amx_serial(const GemmShape&, Strided, Strided, View2<float>, bool) {
  CHECK(false, "no AMX: ask has_amx() first");
}

#endif

}  // namespace fathom::kernels
