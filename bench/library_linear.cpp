#include "bench/library_linear.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "base/parallel.h"
#include "bench/timing.h"
#include "kernels/matmul.h"
#include "model/tensor.h"

namespace fathom::bench {
namespace {

using torch::Tensor;

struct Shape {
  const char* name;
  int64_t outputs, inputs;
};
constexpr Shape kShapes[] = {{"q_a_proj", 1536, 7168},
                             {"q_b_proj", 24576, 1536},
                             {"experts.gate_proj", 2048, 7168},
                             {"experts.down_proj", 7168, 2048}};

Json compare(const Shape& shape, int64_t rows, int repeats) {
  const Tensor weight = torch::randn({shape.outputs, shape.inputs}).to(torch::kBFloat16);
  const Tensor wide_weight = weight.to(torch::kFloat32);
  const Tensor wide_x = torch::randn({rows, shape.inputs}).to(torch::kBFloat16).to(torch::kFloat32);
  const Tensor x = wide_x.to(torch::kBFloat16);
  Tensor y = torch::empty({rows, shape.outputs}), library_y;
  const auto ours = [&] {
    kernels::linear({wide_x.data_ptr<float>(), rows, shape.inputs},
                    {kernels::WeightFormat::kBF16, weight.data_ptr(), shape.outputs, shape.inputs},
                    {y.data_ptr<float>(), rows, shape.outputs}, kernels::Precision::kBF16);
  };
  const auto of_bf16 = [&] { library_y = at::linear(x, weight); };
  const auto of_f32 = [&] { library_y = at::linear(wide_x, wide_weight); };
  double our_ms = HUGE_VAL, bf16_ms = HUGE_VAL, f32_ms = HUGE_VAL;
  const auto time = [](const auto& product, double& best) {
    // The other's idle threads look for work, on our cores, for a while.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    best = std::min(best, 1e3 * best_seconds({1, 1, 0}, [&](int) { product(); }));
  };
  for (int i = 0; i < repeats; ++i) {
    time(ours, our_ms);
    time(of_bf16, bf16_ms);
    time(of_f32, f32_ms);
  }
  const double difference = (y - library_y).abs().max().item<double>();
  return {{"ours_ms", our_ms},
          {"library_bf16_ms", bf16_ms},
          {"library_f32_ms", f32_ms},
          {"times_fastest_library", std::min(bf16_ms, f32_ms) / our_ms},
          {"largest_difference_from_f32", difference}};
}

}  // namespace

Json measure_library_linear(const LibraryLinearOptions& options) {
  if (options.num_threads > 0) base::set_num_threads(options.num_threads);
  at::set_num_threads(base::num_threads());
  torch::manual_seed(1);
  const torch::NoGradGuard no_grad;
  Json result = {{"threads", base::num_threads()},
                 {"library_has_onednn", at::hasMKLDNN()},
                 {"matrices", Json::object()}};
  for (const Shape& shape : kShapes)
    for (const int64_t rows : options.rows)
      result["matrices"][shape.name][std::to_string(rows)] = compare(shape, rows, options.repeats);
  return result;
}

}  // namespace fathom::bench
