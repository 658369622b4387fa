// AVX-512 with bfloat16 and AMX, as avx512.h.
#pragma once

#include "avx512_bf16.h"

#define __AMX_TILE__ 1
#define __AMX_BF16__ 1

#undef _tile_dpbf16ps
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero

namespace pyops {

// Each aborts, and says why, where a processor raises an exception.
void _tile_loadconfig(const void* config);
void _tile_release();
void _tile_zero(int tile);
void _tile_loadd(int tile, const void* base, int64_t stride);
void _tile_stored(int tile, void* base, int64_t stride);
void _tile_dpbf16ps(int sums, int left, int right);

}  // namespace pyops
