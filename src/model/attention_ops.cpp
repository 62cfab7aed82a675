#include "model/attention_ops.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <numeric>

#include "base/parallel.h"
#include "kernels/indexer_loss.h"
#include "kernels/sparse_attention.h"
#include "model/ops.h"

namespace fathom::model::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// One segment's parts of a batch's tensors.
struct Rows : SegmentRows {
  View2<float> of(const Tensor& x) const { return view2(x).slice_rows(begin, begin + count); }
  View2<float> keys_of(const Tensor& x) const {
    return view2(x).slice_rows(key_begin, key_begin + key_count);
  }
  // [H, N]: the segment's part is a column range.
  View2<float> columns_of(const Tensor& x) const {
    return View2<float>(x.data_ptr<float>() + begin, x.size(0), count, x.size(1));
  }
  // Empty where the segment is attended to densely.
  kernels::SelectedKeys of(const KeySelection& selection) const {
    if (!selection.defined()) return {};
    const int64_t* const begins = selection.begins_N1.data_ptr<int64_t>() + begin;
    if (begins[0] == begins[count]) return {};
    return {selection.keys.data_ptr<int32_t>(), begins, count};
  }
};

// Segments as autograd saves them.
std::vector<int64_t> flattened(std::span<const SegmentRows> segments) {
  std::vector<int64_t> flat;
  for (const SegmentRows& s : segments)
    flat.insert(flat.end(), {s.begin, s.count, s.key_begin, s.key_count});
  return flat;
}

std::vector<Rows> rows_of(const std::vector<int64_t>& flat) {
  std::vector<Rows> rows;
  for (size_t i = 0; i < flat.size(); i += 4)
    rows.push_back({{flat[i], flat[i + 1], flat[i + 2], flat[i + 3]}});
  return rows;
}

// For gradients by keys, which kernels write: zeros where ranks share a sequence, so that some keys
// are no segment's.
Tensor key_gradients(const Tensor& k, const std::vector<Rows>& segments) {
  int64_t num_keys = 0;
  for (const Rows& at : segments) num_keys += at.key_count;
  return num_keys == k.size(0) ? torch::empty_like(k) : torch::zeros_like(k);
}

// Runs body(segment, head) for the segments that are attended to densely.
template <typename Body>
void for_each_dense_head(const std::vector<Rows>& segments, const KeySelection& selection,
                         const kernels::AttentionShape& shape, const Body& body) {
  std::vector<Rows> dense;
  for (const Rows& at : segments)
    if (at.of(selection).empty()) dense.push_back(at);
  base::parallel_for(std::ssize(dense) * shape.num_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item)
      body(dense[item / shape.num_heads], item % shape.num_heads);
  });
}

float* data_or_null(const Tensor& x) { return x.defined() ? x.data_ptr<float>() : nullptr; }

struct AttentionFunction : Function<AttentionFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        const kernels::AttentionShape& shape, std::vector<int64_t> flat_segments,
                        const KeySelection& selection, Attended* attended) {
    Tensor out = torch::empty({q.size(0), v.size(1)}),
           lse = torch::empty({shape.num_heads, q.size(0)});
    const auto segments = rows_of(flat_segments);
    for_each_dense_head(segments, selection, shape, [&](const Rows& at, int64_t head) {
      kernels::attention_forward(
          shape, {at.of(q), at.keys_of(k), at.keys_of(v), at.of(out), at.columns_of(lse), {}}, head,
          head + 1);
    });
    for (const Rows& at : segments)
      if (const auto keys_T = at.of(selection); !keys_T.empty())
        kernels::sparse_attention_forward(
            shape, {at.of(q), at.keys_of(k), at.keys_of(v), at.of(out), at.columns_of(lse), keys_T,
                    data_or_null(attended->probabilities)});
    ctx->save_for_backward({q, k, v, out, lse, selection.keys, selection.begins_N1});
    ctx->saved_data["segments"] = std::move(flat_segments);
    ctx->saved_data["shape"] = std::vector<int64_t>{shape.num_heads, shape.qk_dim, shape.v_dim,
                                                    static_cast<int64_t>(shape.precision)};
    ctx->saved_data["scale"] = static_cast<double>(shape.scale);
    attended->lse_HN = lse;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3], &lse = saved[4];
    const KeySelection selection{saved[5], saved[6]};
    const auto dims = ctx->saved_data["shape"].toIntVector();
    const kernels::AttentionShape shape{dims[0], dims[1], dims[2],
                                        static_cast<float>(ctx->saved_data["scale"].toDouble()),
                                        static_cast<kernels::Precision>(dims[3])};
    const Tensor dout = grads[0].contiguous();
    const auto segments = rows_of(ctx->saved_data["segments"].toIntVector());
    Tensor dq = torch::empty_like(q), dk = key_gradients(k, segments),
           dv = key_gradients(v, segments);
    for_each_dense_head(segments, selection, shape, [&](const Rows& at, int64_t head) {
      kernels::attention_backward(shape,
                                  {at.of(q), at.keys_of(k), at.keys_of(v), at.of(out), at.of(dout),
                                   at.columns_of(lse), at.of(dq), at.keys_of(dk), at.keys_of(dv)},
                                  head, head + 1);
    });
    for (const Rows& at : segments)
      if (const auto keys_T = at.of(selection); !keys_T.empty())
        kernels::sparse_attention_backward(
            shape, {at.of(q), at.keys_of(k), at.keys_of(v), at.of(out), at.of(dout),
                    at.columns_of(lse), at.of(dq), at.keys_of(dk), at.keys_of(dv), keys_T});
    return {dq, dk, dv, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// The gradients of the loss, computed with it: backward only scales them.
struct IndexerLossFunction : Function<IndexerLossFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q_NJX, const Tensor& w_NJ,
                        const Tensor& k_SX, const IndexerLossTeacher& teacher,
                        const std::vector<int64_t>& flat_segments, const KeySelection& selection,
                        int64_t recall_k, double* recall) {
    const auto segments = rows_of(flat_segments);
    Tensor dq = torch::empty_like(q_NJX), dw = torch::empty_like(w_NJ),
           dk = key_gradients(k_SX, segments);
    double loss = 0, mass = 0, num_dense = 0;
    for (const Rows& at : segments) {
      const auto keys_T = at.of(selection);
      kernels::IndexerLossOutput out{0, 0, at.of(dq), at.of(dw), at.keys_of(dk)};
      kernels::indexer_loss(
          {teacher.shape, at.of(teacher.q), at.keys_of(teacher.k), at.columns_of(teacher.lse_HN),
           at.of(q_NJX), at.of(w_NJ), at.keys_of(k_SX), keys_T,
           keys_T.empty() ? nullptr : data_or_null(teacher.probabilities), recall_k},
          out);
      loss += out.loss;
      mass += out.recall;
      if (keys_T.empty()) num_dense += static_cast<double>(at.count);
    }
    *recall = num_dense > 0 ? mass / num_dense : 0;
    const double tokens = static_cast<double>(q_NJX.size(0));
    ctx->save_for_backward({dq, dw, dk});
    return torch::tensor(static_cast<float>(loss / tokens));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const double factor = grads[0].item<double>() / static_cast<double>(saved[0].size(0));
    return {saved[0] * factor, saved[1] * factor, saved[2] * factor, Tensor(),
            Tensor(),          Tensor(),          Tensor(),          Tensor()};
  }
};

}  // namespace

KeySelection join_keys(const std::vector<std::vector<int32_t>>& keys_N) {
  const auto tokens = std::ssize(keys_N);
  KeySelection selection{{}, torch::zeros({tokens + 1}, torch::kLong)};
  int64_t* const begins = selection.begins_N1.data_ptr<int64_t>();
  for (int64_t n = 0; n < tokens; ++n) begins[n + 1] = begins[n] + std::ssize(keys_N[n]);
  selection.keys = torch::empty({begins[tokens]}, torch::kInt);
  for (int64_t n = 0; n < tokens; ++n)
    std::copy(keys_N[n].begin(), keys_N[n].end(), selection.keys.data_ptr<int32_t>() + begins[n]);
  return selection;
}

std::vector<SegmentRows> segment_rows(std::span<const int64_t> lengths) {
  std::vector<SegmentRows> rows;
  int64_t begin = 0;
  for (int64_t length : lengths) {
    rows.push_back({begin, length, begin, length});
    begin += length;
  }
  return rows;
}

Attended attend(const Tensor& q, const Tensor& k, const Tensor& v,
                const kernels::AttentionShape& shape, std::span<const SegmentRows> segments,
                const KeySelection& selection, bool wants_probabilities) {
  Attended result;
  if (wants_probabilities && selection.defined())
    result.probabilities = torch::empty({selection.keys.size(0)});
  result.out_NHV = AttentionFunction::apply(q.contiguous(), k.contiguous(), v.contiguous(), shape,
                                            flattened(segments), selection, &result);
  return result;
}

IndexerLoss indexer_loss(const IndexerLossStudent& student, const IndexerLossTeacher& teacher,
                         std::span<const SegmentRows> segments, const KeySelection& selection,
                         int64_t recall_k) {
  IndexerLoss result;
  const IndexerLossTeacher detached{teacher.q.detach().contiguous(),
                                    teacher.k.detach().contiguous(), teacher.lse_HN, teacher.shape,
                                    teacher.probabilities};
  result.loss = IndexerLossFunction::apply(student.q_NJX.contiguous(), student.w_NJ.contiguous(),
                                           student.k_SX.contiguous(), detached, flattened(segments),
                                           selection, recall_k, &result.recall);
  return result;
}

}  // namespace fathom::model::ops
