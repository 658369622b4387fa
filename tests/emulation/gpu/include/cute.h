// CuTe's atoms of sm_80 that a team's warps multiply and load by, as PTX describes them.
#pragma once

#include <cuda_runtime.h>

#include "core/dtype.h"

namespace cute {

using uint128_t = unsigned __int128;

// mma.m16n8k16: the lane's four of c (16, 8) += a (16, 16) · b (16, 8).
template <class T>
struct Multiply16x8x16 {
  struct Operands {
    uint32_t a[4], b[2];
  };

  static void fma(float& d0, float& d1, float& d2, float& d3, const uint32_t& a0,
                  const uint32_t& a1, const uint32_t& a2, const uint32_t& a3, const uint32_t& b0,
                  const uint32_t& b1, const float& c0, const float& c1, const float& c2,
                  const float& c3) {
    const Operands mine{{a0, a1, a2, a3}, {b0, b1}};
    const emulated::Slot* of = emulated::exchange(~0u, &mine, sizeof mine);
    float sums[4] = {c0, c1, c2, c3};
    const int lane = emulated::lane();
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4, below = i / 2, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) {
        const int pair = k % 8 / 2, right = k / 8;
        const Operands a = of[row * 4 + pair].as<Operands>();
        const Operands b = of[column * 4 + pair].as<Operands>();
        sums[i] += half(a.a[below + 2 * right], k % 2) * half(b.b[right], k % 2);
      }
    }
    d0 = sums[0], d1 = sums[1], d2 = sums[2], d3 = sums[3];
  }

  static float half(uint32_t pair, int i) {
    T x;
    x.bits = static_cast<uint16_t>(pair >> 16 * i);
    return static_cast<float>(x);
  }
};
using SM80_16x8x16_F32BF16BF16F32_TN = Multiply16x8x16<pyops::BFloat16>;
using SM80_16x8x16_F32F16F16F32_TN = Multiply16x8x16<pyops::Float16>;

// ldmatrix.x2.trans: lanes 0 to 15 point at the rows of two matrices (8, 8).
struct SM75_U16x4_LDSM_T {
  static void copy(const uint128_t& row, uint32_t& d0, uint32_t& d1) {
    const auto* mine = reinterpret_cast<const uint16_t*>(&row);
    if (reinterpret_cast<uintptr_t>(mine) % 16 != 0) emulated::fail("a misaligned ldmatrix");
    const emulated::Slot* rows = emulated::exchange(~0u, &mine, sizeof mine);
    const int lane = emulated::lane();
    uint32_t to[2];
    for (int matrix = 0; matrix < 2; ++matrix) {
      const auto at = [&](int k) { return rows[matrix * 8 + k].as<const uint16_t*>()[lane / 4]; };
      to[matrix] = at(lane % 4 * 2) | static_cast<uint32_t>(at(lane % 4 * 2 + 1)) << 16;
    }
    __syncwarp();  // as instructions of a warp: nobody writes there before all have read
    d0 = to[0], d1 = to[1];
  }
};

}  // namespace cute
