#include "kernels/index_key_pages.h"

#include <algorithm>
#include <cstring>

#include "kernels/simd.h"

namespace fathom::kernels {
namespace {

// Where number x of key `slot` lies among a page's numbers of type T.
template <typename T>
int64_t place_of(int64_t x, int64_t slot) {
  if (sizeof(T) == sizeof(float)) return x * kPageRows + slot;
  return x / 2 * 2 * kPageRows + 2 * slot + x % 2;
}

template <typename T>
void put(T value, int64_t x, int64_t slot, std::byte* page) {
  std::memcpy(page + place_of<T>(x, slot) * sizeof value, &value, sizeof value);
}

template <typename T>
T get(int64_t x, int64_t slot, const std::byte* page) {
  T value;
  std::memcpy(&value, page + place_of<T>(x, slot) * sizeof value, sizeof value);
  return value;
}

// Of the group's scale, from the page's beginning.
int64_t scale_offset(const IndexKeyLayout& layout, int64_t group, int64_t slot) {
  return layout.scales_offset() + (group * kPageRows + slot) * static_cast<int64_t>(sizeof(float));
}

void store_fp8(const IndexKeyLayout& layout, const float* values, int64_t slot, std::byte* page) {
  for (int64_t begin = 0; begin < layout.dim; begin += kQuantGroup) {
    const int64_t count = std::min(kQuantGroup, layout.dim - begin);
    float q[kQuantGroup], scale;
    quantise_activations({values + begin, 1, count}, {q, 1, count}, {&scale, 1, 1});
    for (int64_t i = 0; i < count; ++i) put(to_e4m3(q[i]), begin + i, slot, page);
    std::memcpy(page + scale_offset(layout, begin / kQuantGroup, slot), &scale, sizeof scale);
  }
}

void store_bf16(const IndexKeyLayout& layout, const float* values, int64_t slot, std::byte* page) {
  uint16_t bits[kQuantGroup];
  for (int64_t begin = 0; begin < layout.dim; begin += kQuantGroup) {
    const int64_t count = std::min(kQuantGroup, layout.dim - begin);
    to_bf16({values + begin, static_cast<size_t>(count)}, {bits, static_cast<size_t>(count)});
    for (int64_t i = 0; i < count; ++i) put(bits[i], begin + i, slot, page);
  }
}

typedef uint32_t U32x8 __attribute__((vector_size(32)));

FATHOM_INLINE F32x8 f32_of_bits(U32x8 bits) { return std::bit_cast<F32x8>(bits); }

KERNEL void widen_bf16_page(const std::byte* page, int64_t dim, float* out) {
  for (int64_t x = 0; x < dim; x += 2, out += 2 * kPageRows, page += 4 * kPageRows)
    for (int64_t s = 0; s < kPageRows; s += kLanes) {
      U32x8 pairs;
      std::memcpy(&pairs, page + 4 * s, sizeof pairs);
      store(out + s, f32_of_bits(pairs << 16));
      if (x + 1 < dim) store(out + kPageRows + s, f32_of_bits(pairs & 0xffff0000u));
    }
}

// Numbers [begin, end) of one group, begin even; of both numbers of sixteen pairs at once.
KERNEL void widen_fp8_group(const std::byte* page, const float* scales, int64_t begin, int64_t end,
                            float* out) {
  constexpr int64_t kPairs = 2 * kLanes;
  for (int64_t x = begin; x < end; x += 2)
    for (int64_t s = 0; s < kPageRows; s += kPairs) {
      I16x16 pairs;
      std::memcpy(&pairs, page + x * kPageRows + 2 * s, sizeof pairs);
      F32x8 even[2], odd[2];
      widen_top_bytes(pairs << 8, even);
      widen_top_bytes(pairs, odd);
      for (int64_t v = 0; v < 2; ++v) {
        const int64_t at = s + v * kLanes;
        const F32x8 factor = load(scales + at) * 256.0f;
        store(out + x * kPageRows + at, even[v] * factor);
        if (x + 1 < end) store(out + (x + 1) * kPageRows + at, odd[v] * factor);
      }
    }
}

}  // namespace

void store_index_key(const IndexKeyLayout& layout, const float* values, int64_t slot,
                     std::byte* page) {
  const bool is_odd = layout.dim % 2 != 0;  // its last pair is half empty
  switch (layout.format) {
    case RowFormat::kF32:
      for (int64_t x = 0; x < layout.dim; ++x) put(values[x], x, slot, page);
      return;
    case RowFormat::kBF16:
      store_bf16(layout, values, slot, page);
      if (is_odd) put(uint16_t{0}, layout.dim, slot, page);
      return;
    case RowFormat::kFP8:
      store_fp8(layout, values, slot, page);
      if (is_odd) put(uint8_t{0}, layout.dim, slot, page);
      return;
  }
}

void widen_index_key(const IndexKeyLayout& layout, const std::byte* page, int64_t slot,
                     float* values) {
  const auto value = [&](int64_t x) {
    if (layout.format == RowFormat::kF32) return get<float>(x, slot, page);
    if (layout.format == RowFormat::kBF16)
      return std::bit_cast<float>(uint32_t{get<uint16_t>(x, slot, page)} << 16);
    float scale;
    std::memcpy(&scale, page + scale_offset(layout, x / kQuantGroup, slot), sizeof scale);
    return from_e4m3(get<uint8_t>(x, slot, page)) * scale;
  };
  for (int64_t x = 0; x < layout.dim; ++x) values[x] = value(x);
}

void widen_index_page(const IndexKeyLayout& layout, const std::byte* page, float* values_XS) {
  switch (layout.format) {
    case RowFormat::kF32:
      std::memcpy(values_XS, page, layout.page_bytes());
      return;
    case RowFormat::kBF16:
      widen_bf16_page(page, layout.dim, values_XS);
      return;
    case RowFormat::kFP8:
      for (int64_t group = 0; group < layout.num_groups(); ++group) {
        float scales[kPageRows];
        std::memcpy(scales, page + scale_offset(layout, group, 0), sizeof scales);
        widen_fp8_group(page, scales, group * kQuantGroup,
                        std::min((group + 1) * kQuantGroup, layout.dim), values_XS);
      }
      return;
  }
}

}  // namespace fathom::kernels
