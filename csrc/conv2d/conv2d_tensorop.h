// Which convolutions the tensor cores of a GPU take, and the kernels that run there.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "conv2d/conv2d_images.h"
#include "gemm/gradient_matrix.h"

namespace pyops {

cudaError_t conv2d_forward_tensorop_cuda(const Conv2dParams& params, cudaStream_t stream);
cudaError_t conv2d_backward_tensorop_cuda(const Conv2dBackwardParams& params, cudaStream_t stream);
cudaError_t conv2d_forward_tf32_cuda(const Conv2dParams& params, cudaStream_t stream);
cudaError_t conv2d_forward_3xtf32_cuda(const Conv2dParams& params, cudaStream_t stream);
cudaError_t conv2d_backward_tf32_cuda(const Conv2dBackwardParams& params, cudaStream_t stream);
cudaError_t conv2d_backward_3xtf32_cuda(const Conv2dBackwardParams& params, cudaStream_t stream);
cudaError_t conv2d_pool_forward_tensorop_cuda(const Conv2dPoolParams& params, cudaStream_t stream);
cudaError_t conv2d_pool_forward_tf32_cuda(const Conv2dPoolParams& params, cudaStream_t stream);
cudaError_t conv2d_pool_forward_3xtf32_cuda(const Conv2dPoolParams& params, cudaStream_t stream);

// They are fed sixteen bytes of channels at a time by offsets of 32 bits, so that a launch takes
// images_of_launch(); of a kernel's rows and columns a word of bits says which lie inside the
// image. A grid's second axis, along which outputs are counted, or the depth, is a short one; its
// first has a part for every phase of a stride.
inline bool suits_tensorop(const Conv2dShape& s, Dtype dtype,
                           std::initializer_list<const void*> tensors) {
  constexpr int64_t kMostBytes = int64_t{1} << 31, kMostTaps = 32, kMostDepth = 1 << 22;
  constexpr int64_t kMostReach = 1 << 15;
  const int64_t depth = s.c * s.kh * s.kw;
  const int64_t width = pack_width(dtype);
  return (dtype_bit(dtype) & kTileTypes) != 0 && s.channels_last && s.groups == 1 &&
         s.c % width == 0 && s.o % width == 0 &&
         std::max({s.kh, s.kw, s.stride_h, s.stride_w}) <= kMostTaps &&
         std::max({s.padding_h, s.padding_w, s.dilation_h, s.dilation_w}) <= kMostReach &&
         std::max(depth, s.o) <= kMostDepth && 4 * s.o * depth < kMostBytes &&
         images_of_launch(s, dtype) > 0 &&
         std::all_of(tensors.begin(), tensors.end(), is_pack_aligned);
}
inline bool suits_tensorop(const Conv2dParams& p) {
  return suits_tensorop(p, p.dtype, {p.x, p.weight, p.bias});
}
inline bool suits_tensorop(const Conv2dPoolParams& p) {
  return suits_tensorop(static_cast<const Conv2dParams&>(p));
}
inline constexpr const char* kSuitsTensorop =
    "channels last, one group, C and O in multiples of 16 bytes, aligned to them, kernels and "
    "strides up to 32, images and weights below 2 GiB";

// The product for grad_x with a stride knows no dilation.
inline bool suits_tensorop(const Conv2dBackwardParams& p) {
  const bool unit_stride = p.stride_h == 1 && p.stride_w == 1;
  const bool undilated = p.dilation_h == 1 && p.dilation_w == 1;
  return (unit_stride || undilated) && suits_tensorop(p, p.dtype, {p.x, p.weight, p.grad_y, p.y});
}
inline constexpr const char* kSuitsTensoropBackward =
    "channels last, one group, C and O in multiples of 16 bytes, aligned to them, kernels and "
    "strides up to 32, images and weights below 2 GiB, a stride or a dilation but not both";

template <class Params>
bool suits_tf32(const Params& p) {
  return p.precision != Precision::kHighest && suits_tensorop(p);
}
inline constexpr const char* kSuitsTf32 =
    "TF32 allowed, channels last, one group, C and O in multiples of 4, aligned to 16 bytes, "
    "kernels and strides up to 32, images and weights below 2 GiB";
inline constexpr const char* kSuitsTf32Backward =
    "TF32 allowed, channels last, one group, C and O in multiples of 4, aligned to 16 bytes, "
    "kernels and strides up to 32, images and weights below 2 GiB, a stride or a dilation but not "
    "both";

// Where channels come last.
inline GradientMatrix gradient_of(const Conv2dBackwardParams& p) {
  return {p.dtype, p.n * p.oh * p.ow, p.o};
}

}  // namespace pyops
