#include "kernels/paged_rows.h"

#include <cstring>

#include "kernels/fp8.h"
#include "kernels/simd.h"

namespace fathom::kernels {
namespace {

int64_t num_groups(const RowLayout& layout) {
  return (layout.quantised + kQuantGroup - 1) / kQuantGroup;
}

void store_fp8(const RowLayout& layout, const float* values, std::byte* row) {
  std::byte* scales = row + layout.quantised;
  for (int64_t begin = 0; begin < layout.quantised; begin += kQuantGroup) {
    const int64_t count = std::min(kQuantGroup, layout.quantised - begin);
    float q[kQuantGroup], scale;
    quantise_activations({values + begin, 1, count}, {q, 1, count}, {&scale, 1, 1});
    for (int64_t i = 0; i < count; ++i) row[begin + i] = std::byte{to_e4m3(q[i])};
    std::memcpy(scales + begin / kQuantGroup * sizeof scale, &scale, sizeof scale);
  }
}

void store_bf16(const float* values, int64_t count, std::byte* out) {
  uint16_t bits[128];
  for (int64_t i = 0; i < count; i += std::ssize(bits)) {
    const auto size = static_cast<size_t>(std::min(std::ssize(bits), count - i));
    to_bf16({values + i, size}, {bits, size});
    std::memcpy(out + i * sizeof *bits, bits, size * sizeof *bits);
  }
}

KERNEL void widen_bf16(const std::byte* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, in + i * sizeof bits, sizeof bits);
    out[i] = std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
}

KERNEL void widen_fp8(const std::byte* in, int64_t count, const std::byte* scales, float* out) {
  for (int64_t begin = 0; begin < count; begin += kQuantGroup) {
    float scale;
    std::memcpy(&scale, scales + begin / kQuantGroup * sizeof scale, sizeof scale);
    widen_e4m3(reinterpret_cast<const uint8_t*>(in) + begin, std::min(kQuantGroup, count - begin),
               scale, out + begin);
  }
}

}  // namespace

void store_row(const RowLayout& layout, const float* values, std::byte* row) {
  switch (layout.format) {
    case RowFormat::kF32:
      std::memcpy(row, values, layout.dim() * sizeof(float));
      return;
    case RowFormat::kBF16:
      store_bf16(values, layout.dim(), row);
      return;
    case RowFormat::kFP8:
      break;
  }
  store_fp8(layout, values, row);
  store_bf16(values + layout.quantised, layout.exact,
             row + layout.quantised + 4 * num_groups(layout));
}

void widen_row(const RowLayout& layout, const std::byte* row, float* values) {
  switch (layout.format) {
    case RowFormat::kF32:
      std::memcpy(values, row, layout.dim() * sizeof(float));
      return;
    case RowFormat::kBF16:
      widen_bf16(row, layout.dim(), values);
      return;
    case RowFormat::kFP8:
      break;
  }
  const std::byte* scales = row + layout.quantised;
  widen_fp8(row, layout.quantised, scales, values);
  widen_bf16(scales + 4 * num_groups(layout), layout.exact, values + layout.quantised);
}

}  // namespace fathom::kernels
