// The AMX tile configuration of every kernel here: eight tiles of 16 rows of 64 bytes.
#pragma once

#include <cstdint>

namespace pyops {

// Static on purpose: GCC thinks that _tile_loadconfig reads 8 bytes, and drops the rest of a
// configuration built on the stack.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline constexpr TileConfig kTileConfig;

}  // namespace pyops
