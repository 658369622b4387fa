// Which pooled convolutions Hopper computes at once, and the patches it cuts them into: 16 rows of
// 8 positions, at every window that begins in one and ends there.
#pragma once

#include <algorithm>

#include "conv2d/conv2d_sm90.h"

namespace pyops {

cudaError_t conv2d_pool_forward_fused_sm90(const Conv2dPoolParams& params, cudaStream_t stream);

inline constexpr int kPatchRows = 16, kPatchColumns = 8, kPatch = kPatchRows * kPatchColumns;
// Rows that a kernel may reach beyond a patch: there is room for them in shared memory.
inline constexpr int kMostReach = 6;

// Windows in so many positions, the first of which begins one.
inline int windows_within(const PoolAxis& axis, int positions) {
  const int64_t room = positions - axis.extent();
  return room < 0 ? 0 : static_cast<int>(room / axis.stride) + 1;
}

// A patch's image, and the pooled position of its first window.
struct PoolPatch {
  int n, row, column;
};

// By 32 bits, as a GPU divides by few instructions.
struct PoolPatches {
  int high, wide;     // windows of a patch
  int rows, columns;  // patches of an image
  int64_t count;      // of all

  explicit PoolPatches(const Conv2dPoolParams& p)
      : high(windows_within(p.pool_h, kPatchRows)),
        wide(windows_within(p.pool_w, kPatchColumns)),
        rows(static_cast<int>((p.pooled_h + high - 1) / high)),
        columns(static_cast<int>((p.pooled_w + wide - 1) / wide)),
        count(p.n * rows * columns) {}

  PYOPS_HOST_DEVICE PoolPatch operator[](int i) const {
    return {i / columns / rows, i / columns % rows * high, i % columns * wide};
  }
};

struct Conv2dPatchParams : Conv2dPoolParams {
  PoolPatches patches;
  bool keeps_weights;  // in shared memory: those of a block's tiles are the same

  Conv2dPatchParams(const Conv2dPoolParams& p, bool keeps)
      : Conv2dPoolParams(p), patches(p), keeps_weights(keeps) {}
};

// Tiles of weights, of which there is room for this many with 64 output channels.
inline constexpr int kMostKept = 9;
inline int64_t weight_tiles(const Conv2dShape& s, int depth) {
  return s.kh * s.kw * ((s.c + depth - 1) / depth);
}

// Windows that do not overlap, of whose strides a patch has two thirds as many positions as it
// computes: that is what the convolution alone would compute.
inline bool fills_patches(const Conv2dPoolParams& p) {
  const auto covered = [](const PoolAxis& axis, int positions) {
    return axis.stride < axis.extent()
               ? 0
               : windows_within(axis, positions) * std::min<int64_t>(axis.stride, positions);
  };
  return 3 * covered(p.pool_h, kPatchRows) * covered(p.pool_w, kPatchColumns) >= 2 * kPatch;
}

// TMA counts coordinates by 32 bits, as do the kernel's threads, and steps by multiples of 16 bytes
// below 2^40.
inline bool suits_pool_sm90(const Conv2dPoolParams& p) {
  constexpr int64_t kMost = 1 << 30, kMostStep = int64_t{1} << 39;
  const int64_t reach_w = (p.kw - 1) * p.dilation_w;
  return (dtype_bit(p.dtype) & kHalfTypes) != 0 && p.channels_last && p.groups == 1 &&
         p.c % 8 == 0 && p.o % 8 == 0 && p.stride_h == 1 && p.stride_w == 1 &&
         fits_short(p.pool_h) && fits_short(p.pool_w) && (p.kh - 1) * p.dilation_h <= kMostReach &&
         fills_patches(p) &&
         std::max({p.n, p.c, p.h, p.w, p.o, p.kw, p.padding_h, p.padding_w, reach_w,
                   PoolPatches(p).count * p.o}) <= kMost &&
         std::max(p.h * p.w, p.kh * p.kw) * p.c < kMostStep && is_pack_aligned(p.x) &&
         is_pack_aligned(p.weight) && is_pack_aligned(p.y) && is_pack_aligned(p.offsets);
}

// f.operator()<output channels of a tile, channels of a step>(): no more of either than there are,
// and where taps share what they load as few as let weights stay.
template <class F>
auto with_pool_tile(const Conv2dShape& s, F&& f) {
  if (s.c <= 32) return f.template operator()<64, 32>();
  const bool stays = s.kh > 1 && weight_tiles(s, 64) <= kMostKept;
  return s.o <= 64 || stays ? f.template operator()<64, 64>() : f.template operator()<128, 64>();
}

inline constexpr const char* kSuitsPoolSm90 =
    "channels last, one group, C and O in multiples of 8, aligned to 16 bytes, stride 1, kernels "
    "up to 7 rows high, windows that do not overlap and fill patches of 16x8";

}  // namespace pyops
