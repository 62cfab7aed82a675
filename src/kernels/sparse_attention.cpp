#include "kernels/sparse_attention.h"

#include <algorithm>
#include <vector>

#include "base/parallel.h"
#include "kernels/amx_tile.h"
#include "kernels/gathered_rows.h"
#include "kernels/sparse_attention_amx.h"
#include "kernels/sparse_attention_bf16.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kQueryBlock = 48;  // a multiple of gemm's 6 rows

// Queries [begin, end) and the keys that any of them selects.
struct Block {
  int64_t begin = 0, end = 0;
  std::vector<int32_t> keys;     // ascending
  std::vector<uint8_t> allowed;  // [queries][keys]: which of them each query selects

  AttentionMask mask() const { return {allowed.data(), std::ssize(keys), false}; }
};

// place[s]: where key s stands in block.keys; only of the block's keys.
void join_selections(SelectedKeys keys_T, Block& block, std::vector<int32_t>& place) {
  std::vector<uint8_t> is_selected(place.size());
  for (int64_t t = block.begin; t < block.end; ++t)
    for (int32_t s : keys_T[t]) is_selected[s] = 1;
  for (size_t s = 0; s < is_selected.size(); ++s) {
    if (!is_selected[s]) continue;
    place[s] = static_cast<int32_t>(block.keys.size());
    block.keys.push_back(static_cast<int32_t>(s));
  }
  block.allowed.resize((block.end - block.begin) * block.keys.size());
  for (int64_t t = block.begin; t < block.end; ++t)
    for (int32_t s : keys_T[t]) block.allowed[(t - block.begin) * block.keys.size() + place[s]] = 1;
}

std::vector<Block> blocks_of(SelectedKeys keys_T, int64_t num_keys) {
  std::vector<Block> blocks((keys_T.num_queries + kQueryBlock - 1) / kQueryBlock);
  base::parallel_for(std::ssize(blocks), 1, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> place(num_keys);
    for (int64_t i = begin; i < end; ++i) {
      blocks[i].begin = i * kQueryBlock;
      blocks[i].end = std::min((i + 1) * kQueryBlock, keys_T.num_queries);
      join_selections(keys_T, blocks[i], place);
    }
  });
  return blocks;
}

// One head's columns of the block's keys, one behind another.
View2<float> gather(View2<const float> rows, const std::vector<int32_t>& keys,
                    std::vector<float>& storage) {
  storage.resize(keys.size() * rows.cols);
  const View2<float> gathered(storage.data(), std::ssize(keys), rows.cols);
  for (size_t i = 0; i < keys.size(); ++i)
    std::copy_n(rows[keys[i]], rows.cols, gathered[static_cast<int64_t>(i)]);
  return gathered;
}

// A head by itself: attention over one head's columns.
AttentionShape one_head(const AttentionShape& shape) {
  return {1, shape.qk_dim, shape.v_dim, shape.scale, shape.precision};
}

// Row h of lse_HT for the block's queries.
template <typename T>
View2<T> lse_of(View2<T> lse_HT, int64_t h, const Block& block) {
  return View2<T>(lse_HT[h] + block.begin, 1, block.end - block.begin, lse_HT.stride);
}

void forward_block(const AttentionShape& shape, const SparseAttentionForward& io,
                   const Block& block, int64_t h) {
  static thread_local std::vector<float> k, v;
  const auto rows = [&](auto x, int64_t dim) {
    return head_columns(x, h, dim).slice_rows(block.begin, block.end);
  };
  attention_forward(
      one_head(shape),
      {rows(io.q, shape.qk_dim), gather(head_columns(io.k, h, shape.qk_dim), block.keys, k),
       gather(head_columns(io.v, h, shape.v_dim), block.keys, v), rows(io.out, shape.v_dim),
       lse_of(io.lse_HT, h, block), block.mask()},
      0, 1);
}

void add_rows(View2<const float> more, const std::vector<int32_t>& keys, View2<float> total) {
  const float one = 1;
  for (size_t i = 0; i < keys.size(); ++i)
    scatter_add(&one, more[static_cast<int64_t>(i)], {&keys[i], 1}, total);
}

void backward_block(const AttentionShape& shape, const SparseAttentionBackward& io,
                    const Block& block, int64_t h) {
  static thread_local std::vector<float> k, v, dk, dv;
  const auto rows = [&](auto x, int64_t dim) {
    return head_columns(x, h, dim).slice_rows(block.begin, block.end);
  };
  dk.resize(block.keys.size() * shape.qk_dim);
  dv.resize(block.keys.size() * shape.v_dim);
  const View2<float> dk_block(dk.data(), std::ssize(block.keys), shape.qk_dim);
  const View2<float> dv_block(dv.data(), std::ssize(block.keys), shape.v_dim);
  attention_backward(
      one_head(shape),
      {rows(io.q, shape.qk_dim), gather(head_columns(io.k, h, shape.qk_dim), block.keys, k),
       gather(head_columns(io.v, h, shape.v_dim), block.keys, v), rows(io.out, shape.v_dim),
       rows(io.dout, shape.v_dim), lse_of(io.lse_HT, h, block), rows(io.dq, shape.qk_dim), dk_block,
       dv_block, block.mask()},
      0, 1);
  add_rows(dk_block, block.keys, head_columns(io.dk, h, shape.qk_dim));
  add_rows(dv_block, block.keys, head_columns(io.dv, h, shape.v_dim));
}

}  // namespace

void sparse_attention_forward(const AttentionShape& shape, const SparseAttentionForward& io) {
  CHECK_EQ(io.keys_T.num_queries, io.q.rows);
  CHECK_EQ(io.k.rows, io.v.rows);
  if (takes_bf16_dot(shape))
    return has_amx() ? sparse_attention_forward_amx(shape, io)
                     : sparse_attention_forward_bf16(shape, io);
  CHECK(!io.mean_probabilities);
  const auto blocks = blocks_of(io.keys_T, io.k.rows);
  base::parallel_for(std::ssize(blocks) * shape.num_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item)
      forward_block(shape, io, blocks[item / shape.num_heads], item % shape.num_heads);
  });
}

void sparse_attention_backward(const AttentionShape& shape, const SparseAttentionBackward& io) {
  CHECK_EQ(io.keys_T.num_queries, io.q.rows);
  CHECK_EQ(io.k.rows, io.v.rows);
  CHECK_EQ(io.dk.rows, io.k.rows);
  CHECK_EQ(io.dv.rows, io.v.rows);
  if (takes_bf16_dot(shape))
    return has_amx() ? sparse_attention_backward_amx(shape, io)
                     : sparse_attention_backward_bf16(shape, io);
  const auto blocks = blocks_of(io.keys_T, io.k.rows);
  base::parallel_for(shape.num_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      clear_rows(head_columns(io.dk, h, shape.qk_dim));
      clear_rows(head_columns(io.dv, h, shape.v_dim));
      for (const Block& block : blocks) backward_block(shape, io, block, h);
    }
  });
}

}  // namespace fathom::kernels
