#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kernels/test_data.h"

namespace fathom::kernels {
namespace {

constexpr int64_t kHeads = 3, kQk = 20, kV = 17;
const AttentionShape kShape{kHeads, kQk, kV, 0.3f};

struct Case {
  TestMatrix q, k, v, out, lse;
  Case(int64_t t, int64_t s)
      : q(t, kHeads * kQk, 1, 1, 2),
        k(s, kHeads * kQk, 2),
        v(s, kHeads * kV, 3),
        out(t, kHeads * kV, 4),
        lse(kHeads, t, 5) {}
  AttentionForward io() { return {q.view, k.view, v.view, out.view, lse.view, {}}; }
};

TEST(Attention, EqualsReferenceOverOddLengths) {
  for (auto [t, s] : {std::pair<int64_t, int64_t>{1, 1}, {7, 7}, {1, 200}, {97, 97}, {130, 261}}) {
    for (bool masked : {false, true}) {
      Case fast(t, s), slow(t, s);
      std::vector<uint8_t> allowed(t * s, 1);
      base::Random random(7);
      for (auto& byte : allowed) byte = random.below(3) == 0;
      auto io = fast.io(), expected = slow.io();
      if (masked) io.mask = expected.mask = {allowed.data(), s};
      attention_forward(kShape, io, 0, kHeads);
      reference::attention(kShape, expected);
      EXPECT_LE(max_difference(fast.out.view, slow.out.view), 2e-5) << t << " " << s;
      EXPECT_LE(max_difference(fast.lse.view, slow.lse.view), 2e-5) << t << " " << s;
    }
  }
}

TEST(Attention, AQuerysBitsDoNotDependOnTheChunk) {
  Case whole(150, 150);
  attention_forward(kShape, whole.io(), 0, kHeads);
  for (int64_t t : {0, 1, 95, 96, 149}) {
    Case one(1, t + 1);
    AttentionForward io{whole.q.view.slice_rows(t, t + 1),
                        whole.k.view.slice_rows(0, t + 1),
                        whole.v.view.slice_rows(0, t + 1),
                        one.out.view,
                        one.lse.view,
                        {}};
    attention_forward(kShape, io, 0, kHeads);
    EXPECT_EQ(max_difference(one.out.view, whole.out.view.slice_rows(t, t + 1)), 0.0) << t;
  }
}

// d(sum(out * cotangent)) by central differences of the double-precision reference.
double reference_objective(Case& c, const TestMatrix& cotangent) {
  reference::attention(kShape, c.io());
  double sum = 0;
  for (int64_t t = 0; t < c.out.view.rows; ++t)
    for (int64_t i = 0; i < c.out.view.cols; ++i)
      sum += static_cast<double>(c.out.view[t][i]) * cotangent.view[t][i];
  return sum;
}

TEST(Attention, GradientsEqualCentralDifferences) {
  const int64_t t = 99, s = 140;
  Case c(t, s);
  const TestMatrix cotangent(t, kHeads * kV, 8);
  attention_forward(kShape, c.io(), 0, kHeads);
  TestMatrix dq(t, kHeads * kQk, 9), dk(s, kHeads * kQk, 9), dv(s, kHeads * kV, 9);
  attention_backward(kShape,
                     {c.q.view, c.k.view, c.v.view, c.out.view, cotangent.view, c.lse.view, dq.view,
                      dk.view, dv.view},
                     0, kHeads);
  base::Random random(1);
  const std::tuple<TestMatrix*, TestMatrix*> pairs[] = {{&c.q, &dq}, {&c.k, &dk}, {&c.v, &dv}};
  for (const auto& [value, gradient] : pairs) {
    for (int trial = 0; trial < 12; ++trial) {
      const auto row = static_cast<int64_t>(random.below(value->view.rows));
      const auto col = static_cast<int64_t>(random.below(value->view.cols));
      float& x = value->view[row][col];
      const float original = x, step = 0.02f;
      x = original + step;
      const double above = reference_objective(c, cotangent);
      x = original - step;
      const double below = reference_objective(c, cotangent);
      x = original;
      EXPECT_NEAR(gradient->view[row][col], (above - below) / (2 * step), 2e-3);
    }
  }
}

}  // namespace
}  // namespace fathom::kernels
