// Which convolutions Hopper's tensor cores take, and how they see one.
#pragma once

#include <algorithm>

#include "conv2d/conv2d_coordinates.h"
#include "conv2d/conv2d_tensorop.h"

namespace pyops {

cudaError_t conv2d_forward_sm90(const Conv2dParams& params, cudaStream_t stream);
cudaError_t conv2d_backward_sm90(const Conv2dBackwardParams& params, cudaStream_t stream);
cudaError_t conv2d_pool_forward_sm90(const Conv2dPoolParams& params, cudaStream_t stream);
int64_t conv2d_backward_workspace_sm90(const Conv2dBackwardParams& params);

// Zeros after the end of an axis that its last output reads, at least none.
PYOPS_HOST_DEVICE inline int64_t padding_after(const ConvAxis& axis) {
  const int64_t read = axis.input(axis.outputs - 1, axis.taps - 1) + 1 - axis.size;
  return read > 0 ? read : 0;
}

// A TMA load gathers the pixels that a tap meets. It finds the first and the last of a row by
// offsets of 8 signed bits, a tap by 8 unsigned ones, and steps by at most 8 pixels.
inline bool is_gathered_by_tma(const ConvAxis& axis) {
  constexpr int64_t kMostOffset = 127, kMostReach = 254, kMostStride = 8;
  const int64_t reach = (axis.taps - 1) * axis.dilation;
  const int64_t last = padding_after(axis) - reach;  // from the last pixel
  // Without a stride grad_x gathers grad_y, where the corners are those of the reversed kernel.
  const int64_t first_of_grad = axis.stride == 1 ? axis.padding - reach : 0;
  const int64_t last_of_grad = axis.stride == 1 ? first_of_grad + axis.size - axis.outputs : 0;
  return std::max(axis.padding, padding_after(axis)) <= kMostOffset && reach <= kMostReach &&
         std::min({last, first_of_grad, last_of_grad}) >= -kMostOffset - 1 &&
         std::max({last, first_of_grad, last_of_grad}) <= kMostOffset && axis.stride <= kMostStride;
}

// A step of the depth is 64 channels of a tap: with fewer than 32 it is mostly zeros. Positions are
// counted by 32 bits, and up to whole tiles of a cluster.
inline bool suits_sm90(const Conv2dShape& s) {
  constexpr int64_t kMostPositions = (int64_t{1} << 31) - 1024;
  return s.c >= 32 && is_gathered_by_tma(axis_h(s)) && is_gathered_by_tma(axis_w(s)) &&
         s.n * std::max(s.h * s.w, s.oh * s.ow) <= kMostPositions;
}
inline bool suits_sm90(const Conv2dParams& p) {
  return suits_tensorop(p) && suits_sm90(static_cast<const Conv2dShape&>(p));
}
inline bool suits_sm90(const Conv2dPoolParams& p) {
  return suits_sm90(static_cast<const Conv2dParams&>(p));
}
inline bool suits_sm90(const Conv2dBackwardParams& p) {
  return suits_tensorop(p) && suits_sm90(static_cast<const Conv2dShape&>(p));
}
inline constexpr const char* kSuitsSm90 =
    "at least 32 channels, strides up to 8, padding and kernels within 8 bits, fewer than 2^31 "
    "positions, and what tensor cores ask for";

// One pixel to an output: a product of matrices.
inline bool is_product(const Conv2dShape& s) {
  return s.kh == 1 && s.kw == 1 && s.stride_h == 1 && s.stride_w == 1 && s.h == s.oh && s.w == s.ow;
}

}  // namespace pyops
