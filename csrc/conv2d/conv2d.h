// Two-dimensional convolution (cross-correlation, as torch has it), alone, with ReLU, with ReLU and
// max pooling, and its gradients.
//
// N: batch   C, H, W: input channels, rows, columns   O: output channels   kh, kw: kernel
// oh, ow: output rows, columns   G: groups, each of C/G input and O/G output channels
//
// Tensors are dense: x (N, C, H, W), weight (O, C/G, kh, kw) and y (N, O, oh, ow) all lie in that
// order, or with `channels_last` all as (N, H, W, C), (O, kh, kw, C/G) and (N, oh, ow, O).
#pragma once

#include <cstdint>

#include "core/cuda_types.h"
#include "core/dtype.h"
#include "core/pool_window.h"
#include "core/precision.h"

namespace pyops {

struct Conv2dShape {
  int64_t n, c, h, w;
  int64_t o, kh, kw;
  int64_t oh, ow;
  int64_t groups;
  int64_t stride_h, stride_w;
  int64_t padding_h, padding_w;  // rows above and columns left of x; oh and ow say what is beyond
  int64_t dilation_h, dilation_w;
  bool channels_last;

  PYOPS_HOST_DEVICE int64_t group_c() const { return c / groups; }
  PYOPS_HOST_DEVICE int64_t group_o() const { return o / groups; }
  PYOPS_HOST_DEVICE int64_t weights() const { return o * group_c() * kh * kw; }
};

struct Conv2dParams : Conv2dShape {
  Dtype dtype;
  Precision precision;
  bool relu;
  const void* x;
  const void* weight;
  const void* bias;  // (O) or null
  void* y;
};

// A null gradient is not wanted.
struct Conv2dBackwardParams : Conv2dShape {
  Dtype dtype;
  Precision precision;
  const void* grad_y;  // as y
  const void* y;       // where it is not positive the gradient is zero; null without ReLU
  const void* x;
  const void* weight;
  void* grad_x;
  void* grad_weight;
  void* grad_bias;            // (O)
  void* workspace = nullptr;  // of the bytes that the table's row asks for; null on the CPU
};

// max_pool2d(relu(conv2d(x))). The pooled tensors are (N, O, pool_h.out, pool_w.out) in the order
// of y, which itself is never stored. An offset is the window's tap that the maximum came from, ky
// * kernel_w + kx: the first of equal ones, the last NaN; kNoTap where the ReLU lets none pass.
inline constexpr int32_t kNoTap = -1;

struct Conv2dPoolParams : Conv2dParams {  // y: the pooled result
  PoolAxis pool_h, pool_w;
  int64_t pooled_h, pooled_w;
  bool wide_offsets;          // int32 rather than uint8, where kNoTap is 255
  void* offsets;              // null when not wanted
  void* workspace = nullptr;  // room for y, which most kernels of a GPU pool; null on the CPU

  PYOPS_HOST_DEVICE void store_offset(int64_t at, int32_t tap) const {
    if (wide_offsets) {
      static_cast<int32_t*>(offsets)[at] = tap;
    } else {
      static_cast<uint8_t*>(offsets)[at] = static_cast<uint8_t>(tap);
    }
  }
};

// Gradient of y for the gradient of the pooled result.
struct Conv2dPoolBackwardParams : Conv2dShape {
  Dtype dtype;
  PoolAxis pool_h, pool_w;
  int64_t pooled_h, pooled_w;
  bool wide_offsets;
  const void* grad_pooled;
  const void* offsets;
  void* grad_y;  // (N, O, oh, ow), already masked by the ReLU

  PYOPS_HOST_DEVICE int32_t tap(int64_t at) const {
    if (wide_offsets) return static_cast<const int32_t*>(offsets)[at];
    const uint8_t offset = static_cast<const uint8_t*>(offsets)[at];
    return offset == static_cast<uint8_t>(kNoTap) ? kNoTap : offset;
  }
};

void conv2d_forward_scalar(const Conv2dParams& params);
void conv2d_forward_avx2(const Conv2dParams& params);
void conv2d_forward_avx512(const Conv2dParams& params);
void conv2d_forward_avx512_bf16(const Conv2dParams& params);
void conv2d_forward_amx(const Conv2dParams& params);
cudaError_t conv2d_forward_depthwise_cuda(const Conv2dParams& params, cudaStream_t stream);
cudaError_t conv2d_forward_cuda(const Conv2dParams& params, cudaStream_t stream);

void conv2d_backward_scalar(const Conv2dBackwardParams& params);
void conv2d_backward_avx2(const Conv2dBackwardParams& params);
void conv2d_backward_avx512(const Conv2dBackwardParams& params);
void conv2d_backward_avx512_bf16(const Conv2dBackwardParams& params);
void conv2d_backward_amx(const Conv2dBackwardParams& params);
cudaError_t conv2d_backward_depthwise_cuda(const Conv2dBackwardParams& params, cudaStream_t stream);
cudaError_t conv2d_backward_cuda(const Conv2dBackwardParams& params, cudaStream_t stream);

void conv2d_pool_forward_scalar(const Conv2dPoolParams& params);
void conv2d_pool_forward_avx2(const Conv2dPoolParams& params);
void conv2d_pool_forward_avx512(const Conv2dPoolParams& params);
void conv2d_pool_forward_avx512_bf16(const Conv2dPoolParams& params);
void conv2d_pool_forward_amx(const Conv2dPoolParams& params);
cudaError_t conv2d_pool_forward_fused_cuda(const Conv2dPoolParams& params, cudaStream_t stream);
cudaError_t conv2d_pool_forward_cuda(const Conv2dPoolParams& params, cudaStream_t stream);

void conv2d_pool_backward_scalar(const Conv2dPoolBackwardParams& params);
cudaError_t conv2d_pool_backward_channels_cuda(const Conv2dPoolBackwardParams& params,
                                               cudaStream_t stream);
cudaError_t conv2d_pool_backward_cuda(const Conv2dPoolBackwardParams& params, cudaStream_t stream);

}  // namespace pyops
