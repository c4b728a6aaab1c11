// The probe's loop for AMX: four accumulator tiles and two tiles of either operand, the register tile of a product.
#include "regard/kernels/cpu/isa.h"
#include "regard/kernels/cpu/machine.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>

#include <algorithm>
#include <iterator>
#endif

namespace regard::kernels {

#if defined(__x86_64__) && defined(__linux__)
namespace {

constexpr int kRows = 16, kRowBytes = 64;

/// What LDTILECFG reads.
struct alignas(64) TileLayout {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16];
  uint8_t rows[16];
  TileLayout() {
    std::fill(std::begin(row_bytes), std::end(row_bytes), uint16_t{0});
    std::fill(std::begin(rows), std::end(rows), uint8_t{0});
    std::fill_n(row_bytes, 8, uint16_t{kRowBytes});
    std::fill_n(rows, 8, uint8_t{kRows});
  }
};

__attribute__((target("amx-tile,amx-bf16"))) double products(int64_t rounds) {
  const TileLayout layout;
  alignas(64) uint16_t ones[kRows * kRowBytes / 2];
  std::fill(std::begin(ones), std::end(ones), uint16_t{0x3f80});
  asm volatile("" : : "m"(layout), "m"(ones) : "memory");  // GCC 12 says that these intrinsics read 8 bytes
  _tile_loadconfig(&layout);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, ones, kRowBytes);
  _tile_loadd(5, ones, kRowBytes);
  _tile_loadd(6, ones, kRowBytes);
  _tile_loadd(7, ones, kRowBytes);
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  constexpr double product = 2.0 * kRows * (kRowBytes / 4) * (kRowBytes / 2);
  return static_cast<double>(rounds) * 4 * product;
}

}  // namespace

double (*machine_amx_loop())(int64_t rounds) { return amx_usable() ? products : nullptr; }

#else

double (*machine_amx_loop())(int64_t rounds) { return nullptr; }

#endif

}  // namespace regard::kernels
