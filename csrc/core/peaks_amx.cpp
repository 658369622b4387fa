#include <immintrin.h>

#include "core/multiply_add.h"
#include "core/tile_config.h"

namespace pyops {

// Four accumulator tiles, operands loaded from L1 as a 2×2 blocking loads them.
double multiply_add_bfloat16_amx(int64_t iterations) {
  alignas(64) static const uint16_t zeros[4][512] = {};
  _tile_loadconfig(&kTileConfig);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_loadd(4, zeros[0], 64);
    _tile_loadd(6, zeros[1], 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, zeros[2], 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, zeros[3], 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  constexpr double kOperations = 2.0 * 16 * 16 * 32;
  return 4 * kOperations * static_cast<double>(iterations);
}

}  // namespace pyops
