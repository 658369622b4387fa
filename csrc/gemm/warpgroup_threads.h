// A warpgroup's thread and its numbers of a tile of 64 rows: of each two rows, 8 apart, and of
// eight columns two neighbours, so that four threads share a row. Number 4·n + 2·r + c is at row
// row_of + 8·r and column 8·n + column_of + c.
#pragma once

#include "core/host_device.h"

namespace pyops {

inline constexpr int kWarpgroup = 128, kWarpgroupRows = 64;

PYOPS_HOST_DEVICE constexpr int row_of(int thread) { return thread / 32 * 16 + thread % 32 / 4; }
PYOPS_HOST_DEVICE constexpr int column_of(int thread) { return thread % 4 * 2; }

}  // namespace pyops
