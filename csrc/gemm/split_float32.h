// A float32 as two parts that TF32 tensor cores multiply (3xTF32): x = big + small + what is below
// 2^-23 of x. Of the four products of parts three are kept, as the fourth is below 2^-22. Tensor
// cores add by truncation, which drifts: a sum of eight leaves them at once and is added by
// rounding (Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores", 2022).
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace pyops {

// Of the depth: a longer sum is one of several, so that its error does not grow.
inline constexpr int64_t kDeepestSplitSum = 2048;

struct SplitFloat32 {
  float big, small;

  // Veltkamp's splitting: rounded to 11 bits, and the exact rest of 12, of which tensor cores drop
  // at most the last. No step may be fused with the next.
  PYOPS_HOST_DEVICE explicit SplitFloat32(float x) {
    constexpr float kSplitter = (1 << 13) + 1;
#ifdef __CUDA_ARCH__
    const float scaled = __fmul_rn(kSplitter, x);
    big = __fsub_rn(scaled, __fsub_rn(scaled, x));
    small = __fsub_rn(x, big);
#else
    const float scaled = kSplitter * x, above = scaled - x;
    big = scaled - above;
    small = x - big;
#endif
  }
};

// Whether numbers with this largest magnitude can be split: one above overflows on the way or is
// infinite, and products of two below, or their smaller parts, end among the subnormals. NaN is no
// matter.
PYOPS_HOST_DEVICE inline bool splits(float largest) {
  constexpr float kLeast = 0x1p-60f, kMost = 0x1p113f;
  return largest == 0 || (largest >= kLeast && largest <= kMost);
}

// The same product of 16x8 by 8x8 without tensor cores: c += a · b for the four elements of c that
// a lane holds in the layout of mma.m16n8k8. a(r, lane) and b(r, lane) are registers of a lane.
template <class A, class B>
PYOPS_HOST_DEVICE inline void add_unsplit_product(int lane, A&& a, B&& b, float (&c)[4]) {
  const int row = lane / 4, column = lane % 4 * 2;
  PYOPS_UNROLL for (int half = 0; half < 2; ++half) {
    // Of the depth: half * 4 + q. Unrolled, this rare way would take the other's registers.
    PYOPS_ROLL for (int q = 0; q < 4; ++q) {
      const float upper = a(2 * half, row * 4 + q), lower = a(2 * half + 1, row * 4 + q);
      const float left = b(half, column * 4 + q), right = b(half, column * 4 + 4 + q);
      c[0] += upper * left;
      c[1] += upper * right;
      c[2] += lower * left;
      c[3] += lower * right;
    }
  }
}

}  // namespace pyops
