#include "bench/linear.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"
#include "base/memory.h"
#include "base/parallel.h"
#include "base/random.h"
#include "bench/machine.h"
#include "bench/timing.h"
#include "kernels/matmul.h"

namespace fathom::bench {
namespace {

struct Matrix {
  const char* name;
  int64_t outputs, inputs;
  int64_t bytes() const { return outputs * inputs; }
};
constexpr Matrix kMatrices[] = {{"q_a_proj", 1536, 7168},
                                {"q_b_proj", 24576, 1536},
                                {"o_proj", 7168, 16384},
                                {"experts.gate_proj", 2048, 7168},
                                {"experts.down_proj", 7168, 2048}};
constexpr int64_t kMostBytes = 7168 * 16384;  // of the matrices above

// e4m3 bytes of magnitude 0.5 to 1.9.
std::vector<uint8_t> random_bytes(int64_t count) {
  std::vector<uint8_t> bytes(count);
  base::Random random(1);
  for (int64_t i = 0; i < count; i += 8)
    for (uint64_t bits = random.next(), j = 0; j < 8 && i + static_cast<int64_t>(j) < count; ++j)
      bytes[i + j] = 0x30 + (bits >> (8 * j) & 0x8f);
  return bytes;
}

// Hands out weights place after place, over all matrices and numbers of rows: whatever comes next,
// most of the buffer has been read since its bytes were.
struct WeightStream {
  std::vector<uint8_t> bytes;
  int64_t at = 0;

  const uint8_t* next(int64_t count) {
    if (at + count > std::ssize(bytes)) at = 0;
    at += count;
    return bytes.data() + at - count;
  }
};

double best_product_seconds(const Matrix& matrix, int64_t rows, float factor,
                            WeightStream& weights) {
  const std::vector<float> factors(matrix.bytes() / (128 * 128), factor);
  const std::vector<float> x(rows * matrix.inputs, 0.5f);
  std::vector<float> y(rows * matrix.outputs);
  return best_seconds({5, 200, 0.3}, [&](int) {
    const kernels::WeightView w{kernels::WeightFormat::kE4M3,
                                weights.next(matrix.bytes()),
                                matrix.outputs,
                                matrix.inputs,
                                factors.data(),
                                0};
    kernels::linear({x.data(), rows, matrix.inputs}, w, {y.data(), rows, matrix.outputs},
                    kernels::Precision::kBF16);
  });
}

MachinePeaks greater(const MachinePeaks& a, const MachinePeaks& b) {
  return {.f32_gflop_per_s = std::max(a.f32_gflop_per_s, b.f32_gflop_per_s),
          .bf16_gflop_per_s = std::max(a.bf16_gflop_per_s, b.bf16_gflop_per_s),
          .int8_gop_per_s = std::max(a.int8_gop_per_s, b.int8_gop_per_s),
          .read_gbyte_per_s = std::max(a.read_gbyte_per_s, b.read_gbyte_per_s)};
}

Json rates(const Matrix& matrix, int64_t rows, double seconds, const MachinePeaks& peaks) {
  // Where there are no bf16 products, those in f32 are what the kernels can reach.
  const double peak = peaks.bf16_gflop_per_s > 0 ? peaks.bf16_gflop_per_s : peaks.f32_gflop_per_s;
  const double gbyte = static_cast<double>(matrix.bytes()) * 1e-9;
  const double gflop = 2 * static_cast<double>(rows) * gbyte;
  return {{"ms", seconds * 1e3},
          {"read_gbyte_per_s", gbyte / seconds},
          {"share_of_read_bandwidth", gbyte / seconds / peaks.read_gbyte_per_s},
          {"gflop_per_s", gflop / seconds},
          {"share_of_peak", gflop / seconds / peak}};
}

}  // namespace

Json measure_linear(const LinearOptions& options) {
  if (options.num_threads > 0) base::set_num_threads(options.num_threads);
  // The buffer of measure_machine(), given back, would make the weights' pages slow to read again.
  base::keep_freed_memory();
  const int64_t buffer_bytes = options.buffer_mbyte * 1'000'000;
  if (buffer_bytes < kMostBytes)
    fail("{} MB of weights do not hold o_proj: ask for {} with --buffer-mbyte",
         options.buffer_mbyte, kMostBytes / 1'000'000 + 1);
  WeightStream weights{random_bytes(buffer_bytes)};
  // Again after each matrix: a shared machine's memory changes within a run, and a share should not
  // come from a slow moment of what it is held against.
  MachinePeaks peaks = measure_machine();
  std::vector<std::vector<double>> seconds;
  for (const Matrix& matrix : kMatrices) {
    std::vector<double>& of_matrix = seconds.emplace_back();
    for (const int64_t rows : options.rows)
      of_matrix.push_back(best_product_seconds(matrix, rows, options.factor, weights));
    peaks = greater(peaks, measure_machine());
  }
  Json result = {{"threads", base::num_threads()},
                 {"machine",
                  {{"bf16_gflop_per_s", peaks.bf16_gflop_per_s},
                   {"f32_gflop_per_s", peaks.f32_gflop_per_s},
                   {"read_gbyte_per_s", peaks.read_gbyte_per_s}}},
                 {"matrices", Json::object()}};
  for (size_t m = 0; m < std::size(kMatrices); ++m)
    for (size_t r = 0; r < options.rows.size(); ++r)
      result["matrices"][kMatrices[m].name][std::to_string(options.rows[r])] =
          rates(kMatrices[m], options.rows[r], seconds[m][r], peaks);
  return result;
}

}  // namespace fathom::bench
