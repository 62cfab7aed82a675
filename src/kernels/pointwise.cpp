#include "kernels/pointwise.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/parallel.h"
#include "kernels/simd.h"
#include "kernels/softmax_row.h"

namespace fathom::kernels {
namespace {

// Rows per parallel item: enough work to be worth a thread's wake-up.
int64_t row_grain(int64_t cols) {
  return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(cols, 1));
}

// sum_i f(i) over eight interleaved lanes.
template <typename Term>
FATHOM_INLINE float lane_sum(int64_t count, const Term& term) {
  F32x8 sum{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += term(i, kLanes);
  if (i < count) sum += term(i, count - i);
  return horizontal_sum(sum);
}

FATHOM_INLINE F32x8 load_some(const float* p, int64_t count) {
  return count == kLanes ? load(p) : load_partial(p, count);
}

KERNEL void rms_norm_rows(View2<const float> x, const float* weight, float eps, View2<float> y,
                          float* inverse_rms) {
  for (int64_t m = 0; m < x.rows; ++m) {
    const float* row = x[m];
    const float squares = lane_sum(
        x.cols, [row](int64_t i, int64_t n) __attribute__((always_inline)) {
          const F32x8 v = load_some(row + i, n);
          return v * v;
        });
    const float inverse = 1 / std::sqrt(squares / static_cast<float>(x.cols) + eps);
    if (inverse_rms) inverse_rms[m] = inverse;
    for (int64_t i = 0; i < x.cols; ++i) y[m][i] = row[i] * inverse * weight[i];
  }
}

KERNEL void rms_norm_backward_rows(View2<const float> x, const float* weight,
                                   const float* inverse_rms, View2<const float> dy,
                                   View2<float> dx) {
  for (int64_t m = 0; m < x.rows; ++m) {
    const float *xr = x[m], *dyr = dy[m];
    const float inverse = inverse_rms[m];
    const float dot = lane_sum(
        x.cols, [=](int64_t i, int64_t n) __attribute__((always_inline)) {
          return load_some(xr + i, n) * load_some(dyr + i, n) * load_some(weight + i, n);
        });
    const float factor = dot * inverse * inverse * inverse / static_cast<float>(x.cols);
    for (int64_t i = 0; i < x.cols; ++i) dx[m][i] = dyr[i] * weight[i] * inverse - xr[i] * factor;
  }
}

KERNEL void add_weight_gradient(View2<const float> x, const float* inverse_rms,
                                View2<const float> dy, float* dweight) {
  for (int64_t m = 0; m < x.rows; ++m) {
    const float inverse = inverse_rms[m];
    for (int64_t i = 0; i < x.cols; ++i) dweight[i] += dy[m][i] * x[m][i] * inverse;
  }
}

KERNEL void swiglu_row(const float* gate, const float* up, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const F32x8 g = load(gate + i);
    store(y + i, g * sigmoid(g) * load(up + i));
  }
  if (i < count) {
    const F32x8 g = load_partial(gate + i, count - i);
    store_partial(y + i, g * sigmoid(g) * load_partial(up + i, count - i), count - i);
  }
}

KERNEL void swiglu_backward_row(const float* gate, const float* up, const float* dy, int64_t count,
                                float* dgate, float* dup) {
  int64_t i = 0;
  for (; i < count; i += kLanes) {
    const int64_t n = std::min(kLanes, count - i);
    const F32x8 g = load_some(gate + i, n), u = load_some(up + i, n), d = load_some(dy + i, n);
    const F32x8 s = sigmoid(g);
    const F32x8 dg = d * u * s * (1.0f + g * (1.0f - s)), du = d * g * s;
    if (n == kLanes) {
      store(dgate + i, dg);
      store(dup + i, du);
    } else {
      store_partial(dgate + i, dg, n);
      store_partial(dup + i, du, n);
    }
  }
}

KERNEL void sigmoid_row(const float* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = std::min(kLanes, count - i);
    store_partial(y + i, sigmoid(load_partial(x + i, n)), n);
  }
}

void rope_head(const Rope& options, const float* cos, const float* sin, float* x) {
  const int64_t half = options.rope_dim / 2;
  const int64_t step = options.interleaved ? 2 : 1;
  const int64_t partner = options.interleaved ? 1 : half;
  const float direction = options.inverse ? -1.0f : 1.0f;
  for (int64_t i = 0; i < half; ++i) {
    float &a = x[i * step], &b = x[i * step + partner];
    const float c = cos[i], s = direction * sin[i], old_a = a;
    a = old_a * c - b * s;
    b = old_a * s + b * c;
  }
}

KERNEL void add_scaled(const float* x, float factor, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] += factor * x[i];
}

}  // namespace

void rms_norm(View2<const float> x, const float* weight, float eps, View2<float> y,
              float* inverse_rms) {
  CHECK(x.rows == y.rows && x.cols == y.cols);
  base::parallel_for(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    rms_norm_rows(x.slice_rows(begin, end), weight, eps, y.slice_rows(begin, end),
                  inverse_rms ? inverse_rms + begin : nullptr);
  });
}

void rms_norm_backward(View2<const float> x, const float* weight, const float* inverse_rms,
                       View2<const float> dy, View2<float> dx, float* dweight) {
  CHECK(x.rows == dy.rows && x.cols == dy.cols && x.rows == dx.rows && x.cols == dx.cols);
  // Weight gradients are summed by blocks of 256 rows, then block by block: the thread count can't
  // change the order.
  constexpr int64_t kBlock = 256;
  const int64_t num_blocks = (x.rows + kBlock - 1) / kBlock;
  std::vector<float> partial(num_blocks * x.cols);
  base::parallel_for(num_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock, last = std::min(first + kBlock, x.rows);
      rms_norm_backward_rows(x.slice_rows(first, last), weight, inverse_rms + first,
                             dy.slice_rows(first, last), dx.slice_rows(first, last));
      add_weight_gradient(x.slice_rows(first, last), inverse_rms + first,
                          dy.slice_rows(first, last), partial.data() + block * x.cols);
    }
  });
  std::fill_n(dweight, x.cols, 0.0f);
  for (int64_t block = 0; block < num_blocks; ++block)
    for (int64_t i = 0; i < x.cols; ++i) dweight[i] += partial[block * x.cols + i];
}

void swiglu(View2<const float> gate, View2<const float> up, View2<float> y) {
  CHECK(gate.rows == up.rows && gate.cols == up.cols && gate.rows == y.rows && gate.cols == y.cols);
  base::parallel_for(gate.rows, row_grain(gate.cols), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) swiglu_row(gate[m], up[m], gate.cols, y[m]);
  });
}

void swiglu_backward(View2<const float> gate, View2<const float> up, View2<const float> dy,
                     View2<float> dgate, View2<float> dup) {
  CHECK(gate.rows == dy.rows && gate.cols == dy.cols);
  base::parallel_for(gate.rows, row_grain(gate.cols), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m)
      swiglu_backward_row(gate[m], up[m], dy[m], gate.cols, dgate[m], dup[m]);
  });
}

void sigmoid(View2<const float> x, View2<float> y) {
  CHECK(x.rows == y.rows && x.cols == y.cols);
  base::parallel_for(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) sigmoid_row(x[m], x.cols, y[m]);
  });
}

void softmax(View2<const float> x, View2<float> y) {
  CHECK(x.rows == y.rows && x.cols == y.cols);
  base::parallel_for(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const double sum = exp_row(x[m], x.cols, max_row(x[m], x.cols), 1, y[m]);
      scale_row(y[m], x.cols, static_cast<float>(1 / sum));
    }
  });
}

void rope(const Rope& options, View2<const float> cos, View2<const float> sin, View2<float> x) {
  CHECK_EQ(x.cols, options.num_heads * options.head_dim);
  CHECK_EQ(cos.cols, options.rope_dim / 2);
  CHECK_EQ(cos.rows, x.rows);
  base::parallel_for(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m)
      for (int64_t h = 0; h < options.num_heads; ++h)
        rope_head(options, cos[m], sin[m], x[m] + h * options.head_dim + options.rope_begin);
  });
}

void gather_rows(View2<const float> x, const int64_t* index, View2<float> out) {
  CHECK_EQ(x.cols, out.cols);
  base::parallel_for(out.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) std::memcpy(out[m], x[index[m]], x.cols * sizeof(float));
  });
}

void combine_rows(View2<const float> x, const int64_t* slot, int64_t num_slots, const float* weight,
                  View2<float> out) {
  CHECK_EQ(x.cols, out.cols);
  base::parallel_for(out.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      std::fill_n(out[n], out.cols, 0.0f);
      for (int64_t j = n * num_slots; j < (n + 1) * num_slots; ++j)
        add_scaled(x[slot[j]], weight ? weight[j] : 1.0f, x.cols, out[n]);
    }
  });
}

}  // namespace fathom::kernels
