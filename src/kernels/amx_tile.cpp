#include "kernels/amx_tile.h"

#if FATHOM_HAS_AMX_KERNELS
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fathom::kernels {

#if FATHOM_HAS_AMX_KERNELS

namespace {

// What ldtilecfg reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Leaf 7: the tile unit, that it takes bf16, and GFNI.
bool cpu_has_amx_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const unsigned tiles = 1u << 22 | 1u << 24, gfni = 1u << 8;
  return (edx & tiles) == tiles && (ecx & gfni) == gfni;
}

// With permission, a thread's first tile makes the system keep 8 KiB more for it. Refused where a
// thread's alternate signal stack would be too small for that.
bool system_grants_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl; XSAVE's component
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool has_amx() {
  static const bool has = has_bf16_dot() && !std::getenv("FATHOM_NO_AMX") && cpu_has_amx_bf16() &&
                          system_grants_tiles();
  return has;
}

TileShape::TileShape(int64_t columns, int64_t rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    const bool is_a = tile == 4 || tile == 5, is_b = tile >= 6;
    config.rows[tile] = static_cast<uint8_t>(is_b ? kAmxPairs : rows);
    config.row_bytes[tile] = static_cast<uint16_t>(4 * (is_a ? kAmxPairs : columns));
  }
  asm volatile("ldtilecfg %0" ::"m"(config));
}

TileShape::~TileShape() { asm volatile("tilerelease"); }

#else

bool has_amx() { return false; }

#endif

}  // namespace fathom::kernels
